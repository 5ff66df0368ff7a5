"""What an on-policy step costs: sampling, teacher and update, ours against TRL GOLD's, in the same run.

    python benchmarks/on_policy_cost.py --quick                # the small pair, some five minutes
    python benchmarks/on_policy_cost.py --output cost.json --markdown cost.md

Pairs (teacher -> student), in fp32, on CPUs. Every example of a step is an answer that the student has just sampled, at
temperature 0.9 and top_p 0.95 (GOLD's defaults); with so low a learning rate all arms sample from one distribution:

    sorting   0.7M -> 0.6M, numbers to sort; 64 answers of 10 tokens or so, as lab.py has them
    text      SmolLM2-135M -> a 20M Llama with GPT-2's tokenizer; 8 answers of 64 tokens, none of which ends earlier

Arms, each a process of its own that waits, stopped, for its turn of a few steps:

    rollouts           share 1, every 1: fully on-policy          rollouts, ahead    the next round sampled meanwhile
    rollouts, every 5  five steps on one round
    TRL GOLD           lmbda 1, its defaults: ULD of merged probabilities              TRL GOLD, hybrid

Printed are medians with smallest and largest, the share of sampling, the peak memory of the process, and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arms import HERE, Arm, compared, in_turns
from measuring import add_output_options, add_trl_options, spread, write_results
from uld import trl_python

BARELY = 1e-7
SAMPLING = {"temperature": 0.9, "top_p": 0.95}
ROLLOUTS: dict[str, dict[str, Any]] = {
    "rollouts": {"every": 1},
    "rollouts, ahead": {"every": 1, "ahead": 1},
    "rollouts, every 5": {"every": 5},
}
GOLD: dict[str, dict[str, Any]] = {"TRL GOLD": {}, "TRL GOLD, hybrid": {"uld_use_hybrid_loss": True}}
TIME_AIM, MEMORY_AIM = 0.5, 0.7


@dataclass(frozen=True)
class Pair:
    """Models and prompts, and how long answers may become."""

    teacher: str
    student: str
    rows: Path
    examples: int
    max_new_tokens: int
    max_length: int


class Paused(Arm):
    """An arm that is stopped between its turns: a thread of it may sample ahead, and would in the turns of others."""

    def start(self, log: Path) -> None:
        super().start(log)
        self._tell(signal.SIGSTOP)

    def step(self, *, counts: bool) -> None:
        self._tell(signal.SIGCONT)
        super().step(counts=counts)
        self._tell(signal.SIGSTOP)

    def _tell(self, what: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.kill(process.pid, what)


def main() -> int:
    options = parse()
    python = trl_python(options.cache) if options.with_trl else None
    results = []
    for name in options.pair:
        folder = Path(tempfile.mkdtemp(prefix=f"uld-ds-{name}-"))
        try:
            pair = {"sorting": sorting, "text": text}[name](folder, options)
            arms = [arm for arm in arms_of(pair, folder, python, options) if arm.name in options.arm]
            in_turns(name, arms, options.turns, folder / "arms.log")
            measured = [arm.to_json() | {"records": arm.records} for arm in arms]
            results.append({"pair": name, "arms": measured})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    write_results("on_policy_cost", table(results), results, options, notes=[f"{options.per_turn} steps a turn, fp32"])
    return 0


# --- arms -------------------------------------------------------------------------------------------------------


def arms_of(pair: Pair, folder: Path, python: Path | None, options: argparse.Namespace) -> list[Arm]:
    """All arms of a pair."""
    arms: list[Arm] = []
    words = ["--per-turn", str(options.per_turn)]
    steps = (options.turns + 2) * options.per_turn
    for number, (name, settings) in enumerate(ROLLOUTS.items()):
        file = folder / f"recipe-{number}.yaml"
        file.write_text(yaml.safe_dump(recipe_of(pair, folder, f"arm-{number}", steps, settings)))
        arms.append(Paused(name, [[sys.executable, str(HERE / "on_policy_ours.py"), str(file), *words]]))
    for number, (name, settings) in enumerate(GOLD.items()):
        if python is not None:
            file = folder / f"gold-{number}.json"
            file.write_text(json.dumps(gold_settings(pair, steps, settings)))
            arms.append(Paused(name, [[str(python), str(HERE / "lab_gold.py"), str(file), *words]]))
    return arms


def recipe_of(pair: Pair, folder: Path, name: str, steps: int, rollouts: dict[str, Any]) -> dict[str, Any]:
    """A recipe that learns from own answers alone."""
    rows = {"source": "files", "path": str(pair.rows)}
    model = {"precision": "fp32", "max_length": pair.max_length}
    return {
        "run": {"name": name, "storage": str(folder / "runs")},
        "teacher": {"model": pair.teacher, "cache": False, "sharding": "none"} | model,
        "student": {"model": pair.student, "deepspeed": "student_zero2_cpu.json"} | model,
        "data": {"train": rows, "eval": rows | {"limit": 1}, "workers": 1},
        "objective": {"ce": 0.7, "uld": 0.0, "projection": 0.3},
        "rollouts": {
            **{"share": 1.0, "batch_size": pair.examples, "max_new_tokens": pair.max_new_tokens},
            **{"objective": {"projection": 1.0}, **SAMPLING, **rollouts},
        },
        "training": {
            **{"steps": steps, "batch_size": pair.examples, "micro_batch_size": pair.examples},
            "optimizer": {"learning_rate": BARELY},
        },
        "cluster": {"workers": 1, "accelerator": "cpu"},
    }


def gold_settings(pair: Pair, steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The same for GOLDTrainer, which answers all prompts itself."""
    return {
        **{"student": pair.student, "teacher": pair.teacher, "data": str(pair.rows)},
        "arguments": {
            **{"max_steps": steps, "per_device_train_batch_size": pair.examples, "learning_rate": BARELY},
            **{"max_length": pair.max_length, "max_completion_length": pair.max_new_tokens, "lmbda": 1.0},
            **{"use_uld_loss": True, **SAMPLING, **settings},
        },
    }


# --- pairs ------------------------------------------------------------------------------------------------------


def sorting(folder: Path, options: argparse.Namespace) -> Pair:
    """The problems of lab.py; both models are trained for a minute, so that answers are about as long."""
    from lab import reasoning_gym_python
    from lab_cell import make_rows
    from lab_models import new_model, train_plainly
    from lab_setup import SETTINGS, Layout, write_rows

    setting = SETTINGS["fine"]
    layout = Layout(folder, setting)
    make_rows(layout, reasoning_gym_python(options.cache))
    rows = layout.taught()
    for side, vocab in (("teacher", setting.teacher_vocab), ("student", setting.student_vocab)):
        new_model(folder / f"{side}-blank", rows[:5000], vocab, seed=0)
        train_plainly(folder / f"{side}-blank", folder / side, rows, 100, setting.batch_size, seed=0)
    write_rows(folder / "prompts.jsonl", layout.unanswered())
    models = str(folder / "teacher"), str(folder / "student")
    return Pair(*models, folder / "prompts.jsonl", setting.batch_size, setting.max_new_tokens, 128)


def text(folder: Path, options: argparse.Namespace) -> Pair:
    """The pair ``bytes`` of teacher.py; the student has learned which tokens text is made of, and never to end."""
    from lab_models import train_plainly
    from teacher import answers_of, located_smollm2, scratch_student
    from transformers import AutoTokenizer

    examples, new_tokens = 8, 64
    blank = scratch_student("bytes", folder / "blank")
    texts = [piece[:300] for piece in answers_of(AutoTokenizer.from_pretrained(blank), 64)]
    rows = [{"prompt": f"Explain part {number}.", "answer": piece} for number, piece in enumerate(texts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_plainly(blank, folder / "student", rows, 40, 4, seed=0, ends=False)
    return Pair(
        located_smollm2(), str(folder / "student"), folder / "prompts.jsonl", examples, new_tokens, max_length=256
    )


# --- results ----------------------------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: every arm of every pair, then what was aimed at."""
    lines = [
        "| pair | arm | s/step, median (min to max) | sampling, share | student tokens a step | peak memory, GB |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for arm in result["arms"]:
            if arm["failed"] or not arm["seconds"]:
                lines.append(f"| {result['pair']} | {arm['name']} | {arm['failed'] or 'no step'} | | | |")
                continue
            records = arm["records"]
            share = statistics.median(record["sampling_seconds"] / record["seconds"] for record in records)
            tokens = statistics.median(record["student_tokens"] for record in records)
            seconds = spread(arm["seconds"], ".2f")
            lines.append(
                f"| {result['pair']} | {arm['name']} | {seconds} | {share:.0%} | {tokens:.0f} | "
                f"{arm['peak_bytes'] / 1e9:.2f} |"
            )
    lines.append("")
    for result in results:
        lines += _aims(result)
    return "\n".join(lines)


def _aims(result: dict[str, Any]) -> list[str]:
    arms = {arm["name"]: arm for arm in result["arms"] if arm["seconds"]}
    lines = []
    for theirs in [arms[name] for name in GOLD if name in arms]:
        for ours in [arms[name] for name in ROLLOUTS if name in arms]:
            middle, said = compared(theirs, ours)
            title = f"{result['pair']}, {ours['name']} against {theirs['name']}"
            verdict = "" if middle != middle else (" - reached" if middle >= 1 / TIME_AIM else " - missed")
            lines.append(f"- {title}: {said} times faster (aim {1 / TIME_AIM:g}){verdict}")
            share = ours["peak_bytes"] / theirs["peak_bytes"]
            verdict = "reached" if share <= MEMORY_AIM else "missed"
            lines.append(f"- {title}: {share:.2f} of its memory (aim {MEMORY_AIM:g}) - {verdict}")
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", action="append", choices=["sorting", "text"], help="repeatable; default: both")
    parser.add_argument("--arm", action="append", choices=[*ROLLOUTS, *GOLD], help="repeatable; default: all")
    parser.add_argument("--turns", type=int, help="measured turns of each arm (default: 5)")
    parser.add_argument("--per-turn", type=int, default=5, help="steps of a turn (default: 5)")
    add_trl_options(parser)
    add_output_options(parser, quick="the small pair, three turns")
    options = parser.parse_args(arguments)
    options.pair = options.pair or (["sorting"] if options.quick else ["sorting", "text"])
    options.arm = options.arm or [*ROLLOUTS, *GOLD]
    options.turns = options.turns or (3 if options.quick else 5)
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
