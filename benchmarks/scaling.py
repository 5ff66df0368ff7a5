"""What sharding costs on one machine, and a cost model of many: which part saturates first?

    python benchmarks/scaling.py --quick              # 1 and 2 ranks
    python benchmarks/scaling.py --output scaling.json --markdown scaling.md
    python benchmarks/scaling.py --no-measure --inter-gbps 200      # the model alone, with another link

Measured: the demo's pair (SmolLM2-135M -> a 3M Llama, fp32, eight answers of 256 teacher tokens a step) on 1, 2 and 4
ranks of one machine, teacher and student sharded by ZeRO-3. The cores are shared out: with as many cores as ranks or
fewer, more ranks compute no faster, and what a step takes longer than on one rank is the overhead of sharding. The
teacher's weights that ranks receive from each other are counted and compared with what the model expects of them.

The model: recipe two-node-70b (70B teacher, 1B student) with the arithmetic of ``uld-ds plan`` on 2 x 8 ... 64 x 8
GPUs, once with 16 answers for every GPU however many there are, once with 1,024 answers for all together. Rates are
stated, not measured: ``--tflops`` at ``--efficiency``, ``--intra-gbps`` into a GPU, ``--inter-gbps`` into a node, and
``--hop-microseconds`` for each of the R - 1 hops of a ring on R ranks, of every gather and reduction. Gathers run ahead
of computing, so a part's time is the longest of computing, wires and hops, and that is what saturates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arms import ROOT, compared, in_turns, ours
from measuring import add_output_options, num_cores, spread, write_results

if TYPE_CHECKING:
    from launcher.plan.plan import Plan

sys.path.insert(0, str(ROOT))

NODES = (2, 4, 8, 16, 32, 64)
PER_NODE = 8
PER_GPU, ALTOGETHER = 16, 1024
# Of a ring all-gather between layers: gathers forward and backward, and a reduction of gradients.
STUDENT_COLLECTIVES = 3


# --- measured ---------------------------------------------------------------------------------------------------


def measure(ranks: list[int], steps: int) -> dict[str, Any]:
    """Steps on so many ranks, in turns."""
    from teacher import make_pair

    with tempfile.TemporaryDirectory(prefix="uld-ds-scaling-") as place:
        folder = Path(place)
        make_pair("demo", folder, None)
        arms = [ours(f"{number} rank{'s' if number > 1 else ''}", folder, micro=1, ranks=number) for number in ranks]
        in_turns("demo pair", arms, steps, folder / "arms.log")
        weights = sum(file.stat().st_size for file in Path(teacher_of(folder)).glob("*.safetensors"))
    # bf16 on disk, fp32 in memory.
    return {"ranks": ranks, "teacher_bytes": 2 * weights, "arms": [arm.to_json() for arm in arms]}


def teacher_of(folder: Path) -> str:
    """The teacher of the pair in ``folder``."""
    return str(json.loads((folder / "pair.json").read_text())["teacher"])


def measured_table(measured: dict[str, Any]) -> str:
    """Markdown."""
    cores = num_cores()
    lines = [
        f"Ranks of one machine with {cores} cores:",
        "",
        "| ranks | s/step | core-seconds a step | times 1 rank's step | peak memory of a rank, GB "
        "| gathered, MB/step | expected |",
        "|---|---|---|---|---|---|---|",
    ]
    first = measured["arms"][0]
    for number, arm in zip(measured["ranks"], measured["arms"], strict=True):
        if arm["failed"] or not arm["seconds"]:
            lines.append(f"| {number} | {arm['failed'] or 'no step'} | | | | | |")
            continue
        used = statistics.median(arm["seconds"]) * min(cores, number * max(1, cores // number))
        # Every rank receives what it lacks.
        expected = measured["teacher_bytes"] * (number - 1)
        again = "" if arm is first else compared(arm, first)[1]
        lines.append(
            f"| {number} | {spread(arm['seconds'], '.2f')} | {used:.1f} | {again} | {arm['peak_bytes'] / 1e9:.2f} "
            f"| {arm['gathered_bytes'] / 1e6:,.0f} | {expected / 1e6:,.0f} |"
        )
    note = "Expected: all weights once. This teacher's output head is its embeddings, which are gathered for both."
    return "\n".join([*lines, "", note])


# --- modeled ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Modeled:
    """One size of the cluster; seconds of a step."""

    nodes: int
    batch: int
    teacher: dict[str, float]
    """Computing, and the wires and hops of its gathers."""
    student: dict[str, float]
    tokens_per_second: float

    @property
    def seconds(self) -> float:
        return max(self.teacher.values()) + max(self.student.values())

    def waits(self) -> list[str]:
        """What takes longer than the computing that it runs ahead of."""
        return [
            f"{role}: {name}"
            for role, parts in (("teacher", self.teacher), ("student", self.student))
            for name, seconds in parts.items()
            if seconds > parts["computing"]
        ]


def modeled(options: argparse.Namespace, *, altogether: int | None) -> Iterator[Modeled]:
    """All sizes, with a batch that grows with them or one for all."""
    for nodes in NODES:
        ranks = nodes * PER_NODE
        batch = altogether or PER_GPU * ranks
        if batch % ranks == 0:
            yield of_cluster(plan_of(options, ranks, batch), nodes, options.hop_microseconds * 1e-6)


def plan_of(options: argparse.Namespace, ranks: int, batch: int) -> Plan:
    """Of recipe two-node-70b on so many ranks."""
    from transformers import AutoConfig

    from launcher.plan.plan import Plan
    from launcher.plan.shapes import shape_of
    from launcher.plan.speed import Hardware
    from tests.helpers.known_models import LLAMA_1B, LLAMA_70B
    from uld_ds.recipe import load_recipe

    micro = min(4, batch // ranks)
    changes = [f"cluster.workers={ranks}", f"training.batch_size={batch}", f"training.micro_batch_size={micro}"]
    recipe = load_recipe(ROOT / "launcher" / "recipes" / "two-node-70b.yaml", changes, environment={})
    hardware = Hardware(
        "gpu", 80_000_000_000, PER_NODE, options.tflops, options.efficiency, options.inter_gbps, options.intra_gbps
    )
    student, teacher = (
        shape_of(AutoConfig.for_model(**{key: value for key, value in shape.items() if key != "architectures"}), name)
        for shape, name in ((LLAMA_1B, "1B"), (LLAMA_70B, "70B"))
    )
    tokens = recipe.student.max_length, recipe.teacher_named().max_length
    return Plan(recipe, hardware, student, {"teacher": teacher}, *tokens)


def of_cluster(plan: Plan, nodes: int, hop: float) -> Modeled:
    """Seconds of a plan's step, by what takes them."""
    seconds, traffic, hardware = plan.seconds(), plan.traffic(), plan.hardware
    ring = hop * (plan.ranks - 1)
    collectives = {
        "teacher": plan.teacher_forwards * (plan.teacher_shapes["teacher"].layers + 1),
        "student": STUDENT_COLLECTIVES * plan.recipe.accumulation * (plan.student_shape.layers + 1),
    }
    parts = {
        role: {
            "computing": seconds[role]["compute"],
            "wires between nodes": traffic[role].per_node * 8 / (hardware.inter_gbps * 1e9),
            "wires inside a node": traffic[role].per_device * 8 / (hardware.intra_gbps * 1e9),
            "hops of rings": collectives[role] * ring,
        }
        for role in ("teacher", "student")
    }
    batch = plan.recipe.training.batch_size
    step = sum(max(part.values()) for part in parts.values())
    return Modeled(nodes, batch, parts["teacher"], parts["student"], batch * plan.teacher_tokens / step)


def model_table(title: str, rows: list[Modeled]) -> str:
    """Markdown, and the sentence that it comes to."""
    names = list(rows[0].teacher)
    lines = [
        f"{title}, seconds a step (teacher / student):",
        "",
        f"| GPUs | batch | {' | '.join(names)} | step | tokens/s | of 2 x 8's per GPU | waits for |",
        "|---" * (len(names) + 6) + "|",
    ]
    base = rows[0].tokens_per_second / rows[0].nodes
    for row in rows:
        cells = [f"{row.teacher[name]:.3g} / {row.student[name]:.3g}" for name in names]
        share = row.tokens_per_second / row.nodes / base
        waits = ", ".join(row.waits()) or "nothing"
        lines.append(
            f"| {row.nodes} x {PER_NODE} | {row.batch:,} | {' | '.join(cells)} | {row.seconds:.2f} "
            f"| {row.tokens_per_second:,.0f} | {share:.0%} | {waits} |"
        )
    return "\n".join([*lines, "", first_to_saturate(rows)])


def first_to_saturate(rows: list[Modeled]) -> str:
    """The smallest cluster that waits for something, and for what."""
    for row in rows:
        if waits := row.waits():
            return f"First to saturate: {', '.join(waits)}, at {row.nodes} x {PER_NODE}."
    last = rows[-1]
    closest = max(
        (seconds / parts["computing"], f"{role}: {name}")
        for role, parts in (("teacher", last.teacher), ("student", last.student))
        for name, seconds in parts.items()
        if name != "computing"
    )
    return f"Nothing saturates up to {last.nodes} x {PER_NODE}; closest is {closest[1]}, {closest[0]:.0%} of computing."


def main() -> int:
    options = parse()
    measured = None if options.no_measure else measure(options.ranks, options.steps)
    grows = list(modeled(options, altogether=None))
    stays = list(modeled(options, altogether=ALTOGETHER))
    texts = [] if measured is None else [measured_table(measured)]
    texts += [
        f"Cost model, rates stated and not measured: {options.tflops:g} TFLOP/s at {options.efficiency:.0%}, "
        f"{options.intra_gbps:g} Gbit/s into a GPU, {options.inter_gbps:g} Gbit/s into a node, "
        f"{options.hop_microseconds:g} us a hop.",
        model_table(f"{PER_GPU} answers of 2,048 tokens for every GPU", grows),
        model_table(f"{ALTOGETHER:,} answers of 2,048 tokens for all", stays),
    ]
    results = {"measured": measured, "grows": [asdict(row) for row in grows], "stays": [asdict(row) for row in stays]}
    write_results("scaling", "\n\n".join(texts), results, options)
    return 1 if measured is not None and any(arm["failed"] for arm in measured["arms"]) else 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", choices=[1, 2, 4, 8], help="default: 1 2 4")
    parser.add_argument("--steps", type=int, help="measured steps of each (default: 5)")
    parser.add_argument("--no-measure", action="store_true", help="the model alone")
    parser.add_argument("--tflops", type=float, default=1000.0, help="peak of a GPU (default: 1000)")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of it that is reached (default: 0.4)")
    parser.add_argument("--intra-gbps", type=float, default=3600.0, help="into a GPU from its node (default: 3600)")
    parser.add_argument("--inter-gbps", type=float, default=400.0, help="into a node (default: 400)")
    parser.add_argument("--hop-microseconds", type=float, default=5.0, help="from rank to rank (default: 5)")
    add_output_options(parser, quick="1 and 2 ranks, two steps")
    options = parser.parse_args(arguments)
    options.ranks = sorted(options.ranks or ([1, 2] if options.quick else [1, 2, 4]))
    options.steps = options.steps or (2 if options.quick else 5)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
