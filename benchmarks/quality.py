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
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import quality_table
from measuring import add_output_options, write_results
from quality_setup import ANSWERS, ARMS, BASELINE, FULL, MAIN_ARMS, QUICK, STUDENTS, Cell, Size, prepare, setup_facts

QUICK_ARMS = [BASELINE, "ce+0.3uld first"]


def main() -> int:
    options = parse()
    size = QUICK if options.quick else FULL
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix="uld-ds-quality-") as folder:
            return measure(Path(folder), size, options)
    return measure(options.folder.expanduser().resolve() / ("quick" if options.quick else "full"), size, options)


def measure(folder: Path, size: Size, options: argparse.Namespace) -> int:
    """Runs what is missing, then prints what there is."""
    results = folder / "cells"
    results.mkdir(parents=True, exist_ok=True)
    failed = 0
    if not options.report:
        wanted = [cell for cell in cells_of(options) if load(results, cell, size) is None]
        if wanted:
            for answers in options.answers:
                prepare(folder, size, answers)
            failed = run_all(folder, results, size, wanted, options.workers)
    found = [load(results, cell, size) for cell in cells_of(options)]
    records = [record for record in found if record is not None]
    text = quality_table.tables(records, list(ARMS), BASELINE) if records else "No run has finished."
    seconds = sum(record["cpu_seconds"] for record in records)
    notes = [f"{len(records)} of {len(found)} runs, {seconds / 3600:.1f} core-hours of training"]
    notes += ["a few steps, to see that it runs: nothing about quality"] if options.quick else []
    write_results("quality", text, {"cells": records}, options, notes=notes)
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
    file = results / f"{cell.name}.json"
    if not file.is_file():
        return None
    record: dict[str, Any] = json.loads(file.read_text())
    same = record["setup"] == json.loads(json.dumps(setup_facts(size, cell))) and record["arm"] == ARMS[cell.arm]
    return record if same else None


def run_all(folder: Path, results: Path, size: Size, cells: list[Cell], workers: int) -> int:
    """Runs cells in processes that each do one after another; how many failed."""
    from quality_cell import run_cell

    failed = 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_cell, folder, results, size, cell): cell for cell in cells}
        for number, done in enumerate(as_completed(waiting), start=1):
            cell, error = waiting[done], done.exception()
            failed += error is not None
            record = None if error else load(results, cell, size)
            said = f"failed: {error!r}" if record is None else f"{quality_table.bits_of(record):.4f} bits per byte"
            print(f"{number}/{len(cells)} {cell.name}: {said}", file=sys.stderr, flush=True)
    return failed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keeps store and finished runs; default: a temporary one")
    parser.add_argument("--arm", action="append", choices=["all", *ARMS], help="repeatable; default: the main ones")
    parser.add_argument("--student", action="append", choices=list(STUDENTS), help="repeatable; default: all")
    parser.add_argument("--fraction", action="append", type=int, help="percent of the data; default: 100, 50, 25")
    parser.add_argument("--budget", action="append", type=int, help="percent of the steps, repeatable; default: 100")
    parser.add_argument("--answers", action="append", choices=ANSWERS, help="whose, repeatable; default: given")
    parser.add_argument("--seeds", type=int, help="runs of each; default: 3")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--report", action="store_true", help="run nothing, print what is in --folder")
    add_output_options(parser, quick="a few steps of two arms, one student, one seed: says nothing about quality")
    options = parser.parse_args(arguments)
    options.arm = options.arm or (QUICK_ARMS if options.quick else list(MAIN_ARMS))
    options.arm = list(ARMS) if "all" in options.arm else options.arm
    options.student = options.student or (["scratch"] if options.quick else list(STUDENTS))
    options.fraction = options.fraction or ([100] if options.quick else [100, 50, 25])
    options.budget = options.budget or [100]
    options.answers = options.answers or ["given"]
    options.seeds = options.seeds or (1 if options.quick else 3)
    if BASELINE not in options.arm:
        options.arm.insert(0, BASELINE)
    if not all(0 < percent <= 100 for percent in options.fraction + options.budget):
        parser.error("--fraction and --budget are percentages between 1 and 100")
    if options.report and options.folder is None:
        parser.error("--report needs --folder")
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
