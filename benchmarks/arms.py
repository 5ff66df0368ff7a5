"""Ways to make an optimizer step, each in processes of its own that take turns: ours, stored or not, and TRL GOLD's."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import MEANINGFUL, num_cores

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent


@dataclass
class Arm:
    """One way to make a step, in one or more processes that wait."""

    name: str
    commands: list[list[str]]
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    gathered_bytes: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    """Of the first process, all that it said of each step that counts."""
    failed: str | None = None
    processes: list[subprocess.Popen[str]] = field(default_factory=list, repr=False)
    tree: Path = ROOT
    """The build that it is of."""

    def start(self, log: Path) -> None:
        """Starts the processes and waits until all are ready for a step."""
        threads = str(max(1, num_cores() // len(self.commands)))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        for rank, command in enumerate(self.commands):
            environment = {
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(self.commands))},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"},
                **{"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
                "PYTHONPATH": str(self.tree),
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
            self.records.append(records[0])

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

    def to_json(self) -> dict[str, Any]:
        """What was measured."""
        names = ("name", "seconds", "peak_bytes", "gathered_bytes", "failed")
        return {name: getattr(self, name) for name in names}


def ours(
    name: str,
    folder: Path,
    *,
    micro: int = 1,
    ranks: int = 1,
    stored: bool = False,
    changes: Sequence[str] = (),
    tree: Path = ROOT,
) -> Arm:
    """Our step of the recipe in ``folder``, with the teacher beside the student or out of the store there.

    Args:
        name: of the arm.
        folder: of the pair.
        micro: examples of a micro-batch at most.
        ranks: processes that share the cores.
        stored: whether the teacher's outputs come out of the store.
        changes: of the recipe, ``KEY=VALUE`` each.
        tree: a checkout of the build to measure; its own benchmark runs, with this environment's packages.
    """
    tree = tree.resolve()
    command = [sys.executable, str(tree / "benchmarks" / "teacher_ours.py"), str(folder / "recipe.yaml")]
    command += ["--micro", str(micro), *(word for change in changes for word in ("--set", change))]
    return Arm(name, [command + (["--store", str(folder / "store")] if stored else [])] * ranks, tree=tree)


def budget(tokens: int) -> tuple[str, ...]:
    """Changes of a recipe: micro-batches of so many tokens, and a teacher that is whole and asked for as many."""
    return (
        f"training.micro_batch_tokens={tokens}",
        f"teacher.max_tokens_per_forward={tokens}",
        "teacher.sharding=none",
    )


def trl(mode: str, folder: Path, python: Path, *, teacher_dtype: str = "float32") -> Arm:
    """TRL GOLD's step of the pair in ``folder``, segments by byte offsets (``extended``) or ``positional``."""
    command = [str(python), str(HERE / "teacher_trl.py"), str(folder / "pair.json"), "--mode", mode]
    name = f"trl {mode}" + (", teacher in bf16" if teacher_dtype == "bfloat16" else "")
    return Arm(name, [[*command, "--teacher-dtype", teacher_dtype]])


def in_turns(title: str, arms: Sequence[Arm], steps: int, log: Path) -> None:
    """Measures all arms, step by step in turns; the first turn warms up and does not count."""
    try:
        for arm in arms:
            print(f"{title}: starting {arm.name}", file=sys.stderr, flush=True)
            arm.start(log)
            if arm.failed:
                print(log.read_text()[-2000:], file=sys.stderr)
        for turn in range(steps + 1):
            for arm in arms:
                if not arm.failed:
                    arm.step(counts=turn > 0)
                    if arm.seconds:
                        print(f"  {turn}/{steps} {arm.name}: {arm.seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    finally:
        for arm in arms:
            arm.stop()


def build_store(folder: Path) -> None:
    """Through the command line, as a user would; its facts land beside it."""
    command = [
        sys.executable,
        "-m",
        "launcher",
        "store",
        "build",
        str(folder / "recipe.yaml"),
        "--output",
        str(folder / "store"),
        "--json",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    (folder / "store.json").write_text(done.stdout.splitlines()[-1])


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
