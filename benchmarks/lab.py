"""Which objective teaches a student most? Accuracy on problems that can be checked, enough seeds, and one baseline.

    python benchmarks/lab.py --quick                          # does it run: a minute or two
    python benchmarks/lab.py --folder ~/lab                   # all arms of the main settings; resumes
    python benchmarks/lab.py --folder ~/lab --setting coarse --arm rollouts,projection --seeds 8
    python benchmarks/lab.py --folder ~/lab --budget 40 --arm "0.7 projection"      # also with 40 % of the steps
    python benchmarks/lab.py --folder ~/lab --report          # what is there so far, nothing is run

A setting (lab_setup.py) is a kind of problem of the reasoning-gym package and a pair of tokenizers. In most of them
numbers are sorted, and one answer is right. ``mixed``: numbers are tokens of the teacher, and most of them of the
student. ``fine``: the student knows bytes alone. ``coarse``: numbers are the student's tokens, and the teacher knows
bytes alone. In ``noisy`` ones 30 % of the answers told to the student have two neighbors swapped, and 10 or 30 % of
those that the teacher is told: it is unsure, and right to be so. Two have vocabularies as ``mixed`` has. ``several``:
even numbers first, in any order; one right answer is told, drawn by the problem alone, and any of them counts: the
teacher is unsure of the order, and knows which ones there are. ``steps``: sums whose partial results are written, each
from the one before.
The teacher is a Llama of 0.7M parameters that was told tens of thousands of answers; the student, one of its size, is
told few (``gold``). There are more prompts that nobody tells the answers to.
All arms of a seed begin from the same student, trained on the gold examples, and take the same number of steps of as
many examples, with one optimizer. An arm (lab_arms.py) is an objective, its data, and own answers or none:

    ce on gold                       more epochs over the gold examples
    ce on the teacher's answers too  those, and the teacher's greedy answers to the other prompts: the baseline
    0.3 projection, ...              the same data, with the teacher's distributions
    rollouts, ...                    half of each batch the same, half the student's own answers to the other prompts
    TRL GOLD, ...                    trl.experimental.gold GOLDTrainer on the same data, own settings but for optimizer

Printed per arm: the share of held-out problems that greedy answers solve (mean, each seed), the difference from the
baseline by seed with a 95 % t interval over seeds, bits per byte of right answers, and how many of the baseline's
student tokens it needs for the baseline's final accuracy; before that, which differences so many seeds can show. A run
is one process's one thread; two run at a time. Not a timing: that is on_policy_cost.py's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lab_table
from cells import add_folder_option, add_run_options, finished, in_folder, parse_runs, results_in, run_all, write_runs
from lab_arms import ARMS, BASELINE, LABELED, QUICK_ARMS, START, Gold
from lab_setup import MAIN_SETTINGS, SETTINGS, Cell, Layout, setting_of, setup_facts
from measuring import add_trl_options
from uld import trl_python

REASONING_GYM = "0.1.25"


def main() -> int:
    options = parse()
    return in_folder("lab", options, partial(measure, options))


def measure(options: argparse.Namespace, folder: Path) -> int:
    """Runs what is missing, then prints what there is."""
    lab = Lab(folder, quick=options.quick)
    cells = cells_of(options)
    failed = 0 if options.report else run_missing(lab, cells, options)
    found = [record for cell in cells if (record := lab.load(cell)) is not None]
    starts = dict.fromkeys(start_of(cell) for cell in cells)
    begun = [record for cell in starts if (record := lab.load(cell)) is not None]
    teachers = {name: lab.teacher(name) for name in options.setting}
    tables, results = (
        partial(lab_table.tables, found, begun, teachers),
        {"cells": [*begun, *found], "teachers": teachers},
    )
    write_runs("lab", tables, results, options, found=found, wanted=len(cells), before=begun)
    return 1 if failed or not found else 0


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """In the order in which they run: all arms of a seed beside each other, seed after seed, so that what there is at
    any time has as many seeds of each arm."""
    return [
        Cell(setting, arm, seed, budget)
        for seed in range(options.seeds)
        for setting in options.setting
        for budget in options.budget
        for arm in options.arm
    ]


def start_of(cell: Cell) -> Cell:
    """The run that a run begins from."""
    return Cell(cell.setting, START, cell.seed)


@dataclass(frozen=True)
class Lab:
    """A folder with problems, teachers and results."""

    folder: Path
    quick: bool

    @property
    def results(self) -> Path:
        """Of all runs, a file each."""
        return results_in(self.folder)

    def layout(self, name: str) -> Layout:
        """Of a setting."""
        return Layout(self.folder, setting_of(name, quick=self.quick))

    def load(self, cell: Cell) -> dict[str, Any] | None:
        """A finished run, if it was made as it would be made now."""
        facts = setup_facts(self.layout(cell.setting).setting, cell)
        return finished(self.results / f"{cell.name}.json", {"setup": facts})

    def teacher(self, name: str) -> dict[str, Any] | None:
        """What was measured of a setting's teacher."""
        file = self.layout(name).folder / "teacher.json"
        return json.loads(file.read_text()) if file.is_file() else None


# --- running ----------------------------------------------------------------------------------------------------


def run_missing(lab: Lab, cells: Sequence[Cell], options: argparse.Namespace) -> int:
    """Problems and teachers, then what the arms begin from, then the arms; how many runs failed."""
    from lab_cell import make_rows, make_teacher, run_cell

    missing = [cell for cell in cells if lab.load(cell) is None]
    if not missing:
        return 0
    layouts = {name: lab.layout(name) for name in dict.fromkeys(cell.setting for cell in missing)}
    problems = reasoning_gym_python(options.cache)
    for layout in layouts.values():
        make_rows(layout, problems)
    needs_trl = any(isinstance(ARMS[cell.arm], Gold) for cell in missing)
    trl = trl_python(options.cache) if needs_trl else None
    begun = [cell for cell in dict.fromkeys(map(start_of, missing)) if lab.load(cell) is None]
    failed = run_all(options.workers, {name: (make_teacher, layout) for name, layout in layouts.items()})
    for wanted in (begun, missing):
        if failed:
            break
        calls = {cell.name: (run_cell, lab.results, layouts[cell.setting], cell, trl) for cell in wanted}
        failed += run_all(options.workers, calls, partial(share_right, lab.results))
    return failed


def share_right(results: Path, name: str) -> str:
    """What is said of a finished run."""
    solved = json.loads((results / f"{name}.json").read_text())["right"]
    return f"{sum(solved) / len(solved):.1%} right"


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
    add_folder_option(parser, keeps="teachers")
    parser.add_argument("--setting", action="append", choices=list(SETTINGS), help="repeatable; default: the main ones")
    parser.add_argument(
        "--arm",
        action="append",
        choices=list(ARMS),
        metavar="ARM",
        help=f"repeatable; default: all; {', '.join(map(repr, ARMS))}",
    )
    parser.add_argument("--budget", action="append", type=int, help="percent of the steps, repeatable; default: 100")
    add_run_options(parser, seeds=5)
    add_trl_options(parser)
    options = parse_runs(parser, arguments, seeds=5, few="three arms")
    options.setting = options.setting or (MAIN_SETTINGS[:1] if options.quick else list(MAIN_SETTINGS))
    options.arm = options.arm or (list(QUICK_ARMS) if options.quick else list(ARMS))
    if not options.with_trl:
        options.arm = [arm for arm in options.arm if not isinstance(ARMS[arm], Gold)]
    options.arm = list(dict.fromkeys([BASELINE, LABELED, *options.arm]))
    options.budget = sorted({100, *(options.budget or [])}, reverse=True)
    if not all(0 < percent <= 100 for percent in options.budget):
        parser.error("--budget is a percentage between 1 and 100")
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
