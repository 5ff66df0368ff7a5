"""A whole optimizer step, with the teacher beside the student or out of a store, against a step of TRL GOLD.

    python benchmarks/teacher.py --quick                  # one pair, a few minutes on two cores
    python benchmarks/teacher.py --gemma FOLDER --output teacher.json --markdown teacher.md

Pairs (teacher -> student), in fp32, eight answers of 256 teacher tokens a step:

    demo     SmolLM2-135M -> a 3M Llama with a 4,096-entry Unigram tokenizer (the demo's)
    bytes    SmolLM2-135M -> a 20M Llama with GPT-2's byte-level tokenizer: TRL's extended mode knows only such pairs
    gemma    Gemma 3 270M -> SmolLM2-135M; FOLDER holds the teacher in Hugging Face layout

Arms, each a process of its own that waits for its turn, so that a busy machine disturbs all alike:

    online 8x1      teacher once for eight micro-batches of one      online 1x8   one micro-batch of eight
    online 2 ranks  the same on two ranks of one thread each, the teacher sharded by ZeRO-3 over both
    stored          the teacher's words out of a spectrum store, no teacher in memory
    trl positional  trl.experimental.gold GOLDTrainer, position by position (micro-batches of one)
    trl extended    the same, segments by byte offsets

Printed are medians with smallest and largest, the peak memory of the process (of the larger rank), bytes of the
teacher's weights that were gathered, and ratios where the spread leaves them a meaning. Building the store is timed
apart: it is paid once for any number of students and epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from measuring import MEANINGFUL
from uld import trl_python

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
TOKENS, EXAMPLES = 256, 8
# (arm, against, at least this many times faster), and the share of TRL's memory a store may take.
TARGETS = [("stored", "trl positional", 2.0), ("stored", "trl extended", 5.0)]
MEMORY_TARGET = 0.6
ARMS = ["online 8x1", "online 1x8", "online 2 ranks", "stored", "trl positional", "trl extended"]


@dataclass
class Arm:
    """One way to make a step, in one or more processes that wait."""

    name: str
    commands: list[list[str]]
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    gathered_bytes: int = 0
    failed: str | None = None
    processes: list[subprocess.Popen[str]] = field(default_factory=list, repr=False)

    def start(self, log: Path) -> None:
        """Starts the processes and waits until all are ready for a step."""
        threads = str(max(1, (os.cpu_count() or 1) // len(self.commands)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        for rank, command in enumerate(self.commands):
            environment = {
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(self.commands))},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"},
                **{"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
                "PYTHONPATH": str(ROOT),
            }
            with log.open("a") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
                    )
                )
        self._answers("READY")

    def step(self, *, counts: bool) -> None:
        """One step of all processes; ``counts`` is False for the first, which warms up."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
        records = [json.loads(answer) for answer in self._answers("STEP")]
        if records and counts:
            self.seconds.append(max(record["seconds"] for record in records))
            self.peak_bytes = max(record["peak_bytes"] for record in records)
            self.gathered_bytes = sum(record.get("gathered_bytes", 0) for record in records)

    def _answers(self, word: str) -> list[str]:
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(word):
                    answers.append(line.removeprefix(word))
                    break
            else:
                self.failed = self.failed or f"process ended with {process.wait()}"
        return [] if self.failed else answers

    def stop(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def arms_of(pair: dict[str, Any], folder: Path, trl: Path | None) -> list[Arm]:
    """All arms of a pair."""
    ours = [sys.executable, str(HERE / "teacher_ours.py"), str(folder / "recipe.yaml")]
    arms = [
        Arm("online 8x1", [[*ours, "--micro", "1"]]),
        Arm("online 1x8", [[*ours, "--micro", str(EXAMPLES)]]),
        Arm("online 2 ranks", [[*ours, "--micro", "1"]] * 2),
        Arm("stored", [[*ours, "--micro", "1", "--store", str(folder / "store")]]),
    ]
    if trl is not None:
        for mode in ("positional", "extended") if pair["byte_level"] else ("positional",):
            command = [str(trl), str(HERE / "teacher_trl.py"), str(folder / "pair.json"), "--mode", mode]
            arms.append(Arm(f"trl {mode}", [command]))
    return arms


def measure(pair: dict[str, Any], folder: Path, options: argparse.Namespace, trl: Path | None) -> dict[str, Any]:
    """All arms of one pair, step by step in turns."""
    begin = time.perf_counter()
    build_store(folder)
    building = time.perf_counter() - begin
    arms = [arm for arm in arms_of(pair, folder, trl) if not options.only or arm.name in options.only]
    try:
        for arm in arms:
            print(f"{pair['name']}: starting {arm.name}", file=sys.stderr, flush=True)
            arm.start(folder / "arms.log")
            if arm.failed:
                print((folder / "arms.log").read_text()[-2000:], file=sys.stderr)
        for turn in range(options.steps + 1):
            for arm in arms:
                if not arm.failed:
                    arm.step(counts=turn > 0)
                    if arm.seconds:
                        print(
                            f"  {turn}/{options.steps} {arm.name}: {arm.seconds[-1]:.2f} s", file=sys.stderr, flush=True
                        )
    finally:
        for arm in arms:
            arm.stop()
    facts = json.loads((folder / "store.json").read_text())
    records = [{k: v for k, v in asdict_without_processes(arm).items() if k != "commands"} for arm in arms]
    return {"pair": pair["name"], "store_seconds": building, "store": facts, "arms": records}


def asdict_without_processes(arm: Arm) -> dict[str, Any]:
    return asdict(Arm(arm.name, arm.commands, arm.seconds, arm.peak_bytes, arm.gathered_bytes, arm.failed))


def build_store(folder: Path) -> None:
    """Through the command line, as a user would; its facts land beside it."""
    program = Path(sys.executable).with_name("uld-ds")
    command = [str(program), "store", "build", str(folder / "recipe.yaml"), "--output", str(folder / "store"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    (folder / "store.json").write_text(done.stdout.splitlines()[-1])


# --- pairs ------------------------------------------------------------------------------------------------------


def make_pair(name: str, folder: Path, gemma: Path | None) -> dict[str, Any]:
    """Models, text and recipe of a pair in ``folder``."""
    sys.path.insert(0, str(ROOT))
    from transformers import AutoTokenizer

    smollm2 = located_smollm2()
    teacher = str(gemma) if name == "gemma" else smollm2
    student = smollm2 if name == "gemma" else str(scratch_student(name, folder / "student"))
    texts = answers_of(AutoTokenizer.from_pretrained(teacher))
    rows = [{"prompt": f"Explain part {number}.", "answer": text} for number, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "run": {"name": "b", "storage": str(folder / "runs")},
        "teacher": {"model": teacher, "precision": "fp32", "max_length": 1024, "max_tokens_per_forward": 2400},
        "student": {"model": student, "precision": "fp32", "max_length": 1024},
        "data": {"train": {"source": "files", "path": str(folder / "train.jsonl")}},
        "training": {"steps": 100, "batch_size": EXAMPLES},
        "cluster": {"workers": 1, "accelerator": "cpu", "threads_per_worker": os.cpu_count() or 1},
    }
    if name == "gemma":
        # The base model has no chat template.
        recipe["teacher"]["prompt_template"] = "{prompt}\n"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pair = {"name": name, "teacher": teacher, "student": student, "byte_level": name == "bytes"}
    (folder / "pair.json").write_text(json.dumps(pair | {"text": str(folder / "train.jsonl"), "examples": EXAMPLES}))
    return pair


def located_smollm2() -> str:
    """The demo teacher's folder, converted if need be."""
    from uld_ds.models import locate_model
    from uld_ds.recipe import load_recipe

    return locate_model(load_recipe(ROOT / "launcher" / "recipes" / "demo.yaml", environment={}).teacher, "teacher")


def scratch_student(name: str, folder: Path) -> Path:
    """A small Llama from scratch; of the demo's size and tokenizer, or of GPT-2's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from launcher.recipes.stdlib_docstrings import pairs
    from tests import tokenizers_zoo
    from uld_ds.tokenizer_training import train_tokenizer

    if name == "demo":
        tokenizer: Any = train_tokenizer("unigram", 4096, (text for row in pairs("train") for text in row.values()))
    else:
        tokenizer = tokenizers_zoo.gpt2()
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        )
        tokenizer.pad_token = tokenizer.eos_token
    size = 192 if name == "demo" else 320
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=512 if name == "demo" else 1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers_of(tokenizer: Any, number: int = 4 * EXAMPLES) -> list[str]:
    """Real text in pieces of TOKENS tokens of the teacher."""
    from launcher.recipes.stdlib_docstrings import pairs

    text = "\n\n".join(row["answer"] for row in pairs("train"))[: number * TOKENS * 8]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode(ids[start : start + TOKENS]) for start in range(0, number * TOKENS, TOKENS)]
    return [piece.strip().replace("\ufffd", "?") for piece in pieces]


# --- results ----------------------------------------------------------------------------------------------------


def compared(slow: dict[str, Any], fast: dict[str, Any]) -> tuple[float, str]:
    """How many times longer ``slow`` takes; NaN where the spread leaves that without a meaning."""
    if len(slow["seconds"]) < 2 or len(fast["seconds"]) < 2:
        return float("nan"), "not measured"
    middle = statistics.median(slow["seconds"]) / statistics.median(fast["seconds"])
    # In turns: what disturbed one turn disturbed both of its steps.
    ratios = [a / b for a, b in zip(slow["seconds"], fast["seconds"], strict=False)]
    if max(ratios) > MEANINGFUL * middle or min(ratios) < middle / MEANINGFUL:
        return float("nan"), f"too noisy: between {min(ratios):.1f} and {max(ratios):.1f}"
    return middle, f"{middle:.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: every arm of every pair, then the targets."""
    lines = [
        "| pair | arm | s/step, median (min to max) | peak memory, GB | gathered, MB/step |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        for arm in result["arms"]:
            if arm["failed"] or not arm["seconds"]:
                lines.append(f"| {result['pair']} | {arm['name']} | {arm['failed'] or 'no step'} | | |")
                continue
            s = arm["seconds"]
            spread = f"{statistics.median(s):.2f} ({min(s):.2f} to {max(s):.2f})"
            numbers = f"{arm['peak_bytes'] / 1e9:.2f} | {arm['gathered_bytes'] / 1e6:.0f}"
            lines.append(f"| {result['pair']} | {arm['name']} | {spread} | {numbers} |")
    lines.append("")
    for result in results:
        arms = {arm["name"]: arm for arm in result["arms"]}
        store = result["store"]
        lines.append(
            f"{result['pair']}: a store of {store['teacher_tokens']:,} tokens, {store['bytes_per_token']:.1f} bytes "
            f"each, built in {result['store_seconds']:.0f} s (start-up included)"
        )
        for fast, slow, wanted in TARGETS:
            if slow in arms and fast in arms:
                middle, said = compared(arms[slow], arms[fast])
                verdict = "" if middle != middle else (" - reached" if middle >= wanted else " - missed")
                lines.append(f"- {fast} against {slow}: {said} times faster (goal {wanted:g}){verdict}")
                if arms[slow]["peak_bytes"] and arms[fast]["peak_bytes"]:
                    share = arms[fast]["peak_bytes"] / arms[slow]["peak_bytes"]
                    verdict = "reached" if share <= MEMORY_TARGET else "missed"
                    lines.append(f"- memory of it: {share:.2f} of {slow}'s (goal {MEMORY_TARGET:g}) - {verdict}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", action="append", choices=["demo", "bytes", "gemma"], help="default: all there are")
    parser.add_argument("--gemma", type=Path, help="folder of Gemma 3 270M in Hugging Face layout")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each arm (default: 5)")
    parser.add_argument("--only", action="append", choices=ARMS, help="measure only these arms; repeatable")
    parser.add_argument("--no-trl", dest="with_trl", action="store_false", help="leave TRL out")
    parser.add_argument("--quick", action="store_true", help="the demo pair, three steps")
    parser.add_argument("--output", type=Path, help="write everything measured to this JSON file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "uld-ds" / "benchmarks"
    parser.add_argument("--cache", type=Path, default=default, help="where TRL's environment lives")
    options = parser.parse_args()
    names = options.pair or (["demo"] if options.quick else ["demo", "bytes", *(["gemma"] if options.gemma else [])])
    if "gemma" in names and options.gemma is None:
        parser.error("--pair gemma needs --gemma FOLDER")
    options.steps = 3 if options.quick else options.steps
    trl = trl_python(options.cache) if options.with_trl else None
    results = []
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix=f"uld-ds-{name}-"))
        try:
            results.append(measure(make_pair(name, folder, options.gemma), folder, options, trl))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    text = f"Machine: {machine}. {EXAMPLES} answers of {TOKENS} teacher tokens a step, fp32.\n\n{table(results)}"
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
