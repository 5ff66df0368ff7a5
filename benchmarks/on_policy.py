"""Does a student learn more from its own answers than from given ones? Accuracy on problems that can be checked.

    python benchmarks/on_policy.py --quick                   # does it run: a few minutes
    python benchmarks/on_policy.py --folder ~/on-policy      # resumes: finished runs are kept
    python benchmarks/on_policy.py --folder ~/on-policy --task spell_backward --arm rollouts --seeds 5
    python benchmarks/on_policy.py --folder ~/on-policy --report      # what is there so far, nothing is run

Problems are those of the reasoning-gym package, each with one right answer. The teacher is a Llama of 0.7M parameters
that has learned from tens of thousands of right answers; the student is one of its size with another tokenizer, which
has seen few (``gold``). There are more prompts whose right answers nobody tells. All arms of a seed begin from the same
student, trained on the gold examples, and take the same number of steps of as many examples, with one optimizer:

    ce on gold                        more epochs over the gold examples: the baseline
    ce on the teacher's answers too   those, and the teacher's greedy answers to the other prompts
    projection, off-policy            the same data, 0.7 cross-entropy + 0.3 projection of the teacher
    rollouts                          half of each batch the same, half the student's own answers to the other prompts
    TRL GOLD                          trl.experimental.gold GOLDTrainer on the same data, own settings but for optimizer
    TRL GOLD, hybrid                  the same with its hybrid loss                       and lengths

Printed per arm: the share of held-out problems that greedy answers solve (mean, each seed, 95 % bootstrap interval over
seeds and problems), the difference from the baseline with a 95 % t interval over seeds, and how much of the gap
between baseline and teacher it closes. A run is one process's one thread; two run at a time. Not a timing: that is
on_policy_cost.py's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import on_policy_table
from measuring import add_output_options, add_trl_options, write_results
from on_policy_setup import ARMS, BASELINE, FULL, MAIN_ARMS, QUICK, START, TASKS, Cell, Gold, Layout, Size, setup_facts
from uld import trl_python

REASONING_GYM = "0.1.25"
QUICK_ARMS = [BASELINE, "projection, off-policy"]


def main() -> int:
    options = parse()
    size = QUICK if options.quick else FULL
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix="uld-ds-on-policy-") as folder:
            return measure(Path(folder), size, options)
    return measure(options.folder.expanduser().resolve() / ("quick" if options.quick else "full"), size, options)


def measure(folder: Path, size: Size, options: argparse.Namespace) -> int:
    """Runs what is missing, then prints what there is."""
    results = folder / "cells"
    results.mkdir(parents=True, exist_ok=True)
    cells = cells_of(options)
    failed = 0 if options.report else run_missing(folder, results, size, cells, options)
    found = [record for cell in cells if (record := load(results, cell, size)) is not None]
    starts = {(cell.task, cell.seed): Cell(cell.task, START, cell.seed) for cell in cells}
    begun = [record for cell in starts.values() if (record := load(results, cell, size)) is not None]
    teachers = {task: teacher_of(folder, size, task) for task in options.task}
    text = on_policy_table.tables(found, begun, teachers, list(ARMS), BASELINE) if found else "No run has finished."
    seconds = sum(record["cpu_seconds"] for record in [*found, *begun])
    notes = [f"{len(found)} of {len(cells)} runs, {seconds / 3600:.1f} core-hours of training"]
    notes += ["a few steps, to see that it runs: nothing about quality"] if options.quick else []
    write_results("on_policy", text, {"cells": [*begun, *found], "teachers": teachers}, options, notes=notes)
    return 1 if failed or not found else 0


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """In the order in which they run: all arms of a seed beside each other."""
    return [
        Cell(task, arm, seed) for task in options.task for seed in range(options.seeds) for arm in options.arm
    ]  # fmt: skip


def load(results: Path, cell: Cell, size: Size) -> dict[str, Any] | None:
    """A finished run, if it was made as it would be made now."""
    file = results / f"{cell.name}.json"
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text())
    return record if record["setup"] == setup_facts(size, cell) else None


def teacher_of(folder: Path, size: Size, task: str) -> dict[str, Any] | None:
    """What was measured of a task's teacher."""
    file = Layout(folder, size, task).folder / "teacher.json"
    return json.loads(file.read_text()) if file.is_file() else None


# --- running ----------------------------------------------------------------------------------------------------


def run_missing(folder: Path, results: Path, size: Size, cells: Sequence[Cell], options: argparse.Namespace) -> int:
    """Problems and teachers, then what the arms begin from, then the arms; how many runs failed."""
    from on_policy_cell import make_rows, make_teacher, run_cell

    missing = [cell for cell in cells if load(results, cell, size) is None]
    if not missing:
        return 0
    tasks = list(dict.fromkeys(cell.task for cell in missing))
    problems = reasoning_gym_python(options.cache)
    for task in tasks:
        make_rows(Layout(folder, size, task), task, problems)
    needs_trl = any(isinstance(ARMS[cell.arm], Gold) for cell in missing)
    trl = trl_python(options.cache) if needs_trl else None
    starts = dict.fromkeys(Cell(cell.task, START, cell.seed) for cell in missing)
    begun = [cell for cell in starts if load(results, cell, size) is None]
    failed = run_all(options.workers, {task: (make_teacher, folder, size, task) for task in tasks})
    for wanted in (begun, missing):
        failed += run_all(
            options.workers, {cell.name: (run_cell, folder, results, size, cell, trl) for cell in wanted}, results
        )
    return failed


def run_all(
    workers: int, calls: dict[str, tuple[Callable[..., None], *tuple[Any, ...]]], results: Path | None = None
) -> int:
    """Calls functions in processes of their own, so many at a time; how many failed."""
    failed = 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting: dict[Future[None], str] = {pool.submit(*call): name for name, call in calls.items()}
        for number, done in enumerate(as_completed(waiting), start=1):
            name, error = waiting[done], done.exception()
            failed += error is not None
            said = f"failed: {error!r}" if error else "done"
            if results is not None and not error:
                solved = json.loads((results / f"{name}.json").read_text())["right"]
                said = f"{sum(solved) / len(solved):.1%} right"
            print(f"{number}/{len(calls)} {name}: {said}", file=sys.stderr, flush=True)
    return failed


def reasoning_gym_python(cache: Path) -> Path:
    """Python of an environment with reasoning-gym in it, made if it is not there."""
    home = cache / f"reasoning-gym-{REASONING_GYM}"
    python = home / "bin" / "python"
    check = [str(python), "-c", "import reasoning_gym"]
    if not python.exists() or subprocess.run(check, capture_output=True).returncode != 0:
        print(f"making an environment with reasoning-gym {REASONING_GYM} in {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        package = f"reasoning-gym=={REASONING_GYM}"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
    return python


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keeps teachers and finished runs; default: a temporary one")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="repeatable; default: number_sorting")
    parser.add_argument("--arm", action="append", choices=["all", *ARMS], help="repeatable; default: the main ones")
    parser.add_argument("--seeds", type=int, help="runs of each; default: 3")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--report", action="store_true", help="run nothing, print what is in --folder")
    add_trl_options(parser)
    add_output_options(parser, quick="a few steps of two arms, one seed: says nothing about quality")
    options = parser.parse_args(arguments)
    options.task = options.task or ["number_sorting"]
    options.arm = options.arm or (QUICK_ARMS if options.quick else list(MAIN_ARMS))
    options.arm = list(ARMS) if "all" in options.arm else options.arm
    if not options.with_trl:
        options.arm = [arm for arm in options.arm if not isinstance(ARMS[arm], Gold)]
    options.seeds = options.seeds or (1 if options.quick else 3)
    if BASELINE not in options.arm:
        options.arm.insert(0, BASELINE)
    if options.report and options.folder is None:
        parser.error("--report needs --folder")
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
