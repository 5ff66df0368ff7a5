"""Does distilling help? Held-out bits per byte of students trained with and without the teacher's spectra.

    python benchmarks/quality.py --quick                                   # does it run: a few minutes
    python benchmarks/quality.py --folder ~/quality                        # an hour; resumes: finished runs are kept
    python benchmarks/quality.py --folder ~/quality --arm all --student scratch --fraction 100
    python benchmarks/quality.py --folder ~/quality --arm ce --arm "ce+0.3uld first" --student scratch --seeds 5
    python benchmarks/quality.py --folder ~/quality --budget 60 --budget 100                # also with fewer steps
    python benchmarks/quality.py --folder ~/quality --report               # what is there so far, nothing is run

Teacher: SmolLM2-135M-Instruct, asked once (a spectrum store). Data: questions about Python's standard library, as in
the demo recipe; answers are the docstrings (given), or what the teacher says (--answers teacher). Students, both with a
4,096-entry Unigram tokenizer:

    scratch   a Llama of 1.3M parameters, from nothing
    pruned    three layers of SmolLM2, embeddings made anew for the tokenizer (student.embeddings: spelled)

Every arm is an objective (quality_setup.py). All arms of a student train with the same steps, examples, order and
initial weights of a seed; a share of the data below 100 % means more epochs over fewer examples. Printed per arm:

    bits per byte       of held-out answers at the end, mean (smallest to largest) over seeds
    against ce          difference from cross-entropy alone, by seed; 95 % bootstrap interval over seeds and documents
    tokens              student tokens until ce's final quality is reached, share of ce's (learning rates fall until
                        the last step, so even a better arm reaches it late)
    60 % of the steps   the same arm with so many steps, its learning rate falling within them, against all of ce's:
                        0 or less where so many tokens are enough for ce's final quality (--budget)
    token F1            of greedy answers to a few held-out prompts, with a bootstrap interval over seeds and prompts of
                        the difference; students of given answers hardly say anything right
    verdict             better or worse where both that and a t interval over seeds say so; weaker where only it does

A run is one process's one thread; two run at a time. Not a timing: other work beside it changes nothing but the wait.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import quality_table
from cells import add_folder_option, add_run_options, finished, in_folder, parse_runs, results_in, run_all, write_runs
from quality_setup import ANSWERS, ARMS, BASELINE, FULL, MAIN_ARMS, QUICK, STUDENTS, Cell, Size, prepare, setup_facts

QUICK_ARMS = [BASELINE, "ce+0.3uld first"]


def main() -> int:
    options = parse()
    size = QUICK if options.quick else FULL
    return in_folder("quality", options, partial(measure, options, size))


def measure(options: argparse.Namespace, size: Size, folder: Path) -> int:
    """Runs what is missing, then prints what there is."""
    results, cells = results_in(folder), cells_of(options)
    missing = [] if options.report else [cell for cell in cells if load(results, cell, size) is None]
    failed = run_missing(folder, results, size, missing, options) if missing else 0
    records = [record for cell in cells if (record := load(results, cell, size)) is not None]
    tables = partial(quality_table.tables, records, list(ARMS), BASELINE)
    write_runs("quality", tables, {"cells": records}, options, found=records, wanted=len(cells))
    return 1 if failed or not records else 0


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """In the order in which they run: all arms of a seed beside each other."""
    return [
        Cell(student, arm, percent, seed, budget, answers)
        for answers in options.answers
        for student in options.student
        for percent in options.fraction
        for budget in options.budget
        for seed in range(options.seeds)
        for arm in options.arm
    ]


def load(results: Path, cell: Cell, size: Size) -> dict[str, Any] | None:
    """A finished run, if it was made as it would be made now."""
    return finished(results / f"{cell.name}.json", {"setup": setup_facts(size, cell), "arm": ARMS[cell.arm]})


def run_missing(folder: Path, results: Path, size: Size, cells: list[Cell], options: argparse.Namespace) -> int:
    """What all runs share, then cells in processes that each do one after another; how many failed."""
    for answers in options.answers:
        prepare(folder, size, answers)
    from quality_cell import run_cell

    calls = {cell.name: (run_cell, folder, results, size, cell) for cell in cells}
    return run_all(options.workers, calls, partial(quality_table.said_of, results), runs_per_process=None)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folder_option(parser, keeps="store")
    parser.add_argument("--arm", action="append", choices=["all", *ARMS], help="repeatable; default: the main ones")
    parser.add_argument("--student", action="append", choices=list(STUDENTS), help="repeatable; default: all")
    parser.add_argument("--fraction", action="append", type=int, help="percent of the data; default: 100, 50, 25")
    parser.add_argument("--budget", action="append", type=int, help="percent of the steps, repeatable; default: 100")
    parser.add_argument("--answers", action="append", choices=ANSWERS, help="whose, repeatable; default: given")
    add_run_options(parser, seeds=3)
    options = parse_runs(parser, arguments, seeds=3, few="two arms, one student")
    options.arm = options.arm or (QUICK_ARMS if options.quick else list(MAIN_ARMS))
    options.arm = list(ARMS) if "all" in options.arm else options.arm
    options.student = options.student or (["scratch"] if options.quick else list(STUDENTS))
    options.fraction = options.fraction or ([100] if options.quick else [100, 50, 25])
    options.budget = options.budget or [100]
    options.answers = options.answers or ["given"]
    if BASELINE not in options.arm:
        options.arm.insert(0, BASELINE)
    if not all(0 < percent <= 100 for percent in options.fraction + options.budget):
        parser.error("--fraction and --budget are percentages between 1 and 100")
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
