"""What benchmarks of many training runs share: a folder of finished ones, which resumes; processes; options and notes.

A run is a cell: its result is a file of its own, with what it was made by, and is used as long as that is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measuring import add_output_options, write_results

Record = dict[str, Any]
Call = tuple[Callable[..., None], *tuple[Any, ...]]
"""A function of a module, which another process can import, and its arguments."""


# --- the command line -------------------------------------------------------------------------------------------


def add_folder_option(parser: argparse.ArgumentParser, *, keeps: str) -> None:
    """The option where finished runs are; ``keeps`` says what else is there."""
    parser.add_argument("--folder", type=Path, help=f"keeps {keeps} and finished runs; default: a temporary one")


def add_run_options(parser: argparse.ArgumentParser, *, seeds: int) -> None:
    """The options on how many runs there are and whether any is made; ``seeds`` is the default."""
    parser.add_argument("--seeds", type=int, help=f"runs of each; default: {seeds}")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--report", action="store_true", help="run nothing, print what is in --folder")


def parse_runs(
    parser: argparse.ArgumentParser, arguments: list[str] | None, *, seeds: int, few: str
) -> argparse.Namespace:
    """Parses the command line, with the options of every benchmark as the last.

    Args:
        parser: with all other options.
        arguments: default: those of the process.
        seeds: by default; of a quick run it is one.
        few: what a quick run is of.
    """
    add_output_options(parser, quick=f"a few steps of {few}, one seed: says nothing about quality")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (1 if options.quick else seeds)
    if options.report and options.folder is None:
        parser.error("--report needs --folder")
    return options


def in_folder(name: str, options: argparse.Namespace, measure: Callable[[Path], int]) -> int:
    """Measures in the folder of the command line, where quick runs have one of their own, or in a temporary one."""
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix=f"uld-ds-{name}-") as temporary:
            return _in_folder(Path(temporary), measure)
    return _in_folder(options.folder.expanduser().resolve() / ("quick" if options.quick else "full"), measure)


def _in_folder(folder: Path, measure: Callable[[Path], int]) -> int:
    results_in(folder).mkdir(parents=True, exist_ok=True)
    return measure(folder)


# --- runs -------------------------------------------------------------------------------------------------------


def results_in(folder: Path) -> Path:
    """Where the results of all runs are, a file each."""
    return folder / "cells"


def write_json(file: Path, record: Record) -> None:
    """Whole or not at all."""
    aside = file.with_suffix(".partial")
    aside.write_text(json.dumps(record))
    aside.replace(file)


def finished(file: Path, facts: Mapping[str, Any]) -> Record | None:
    """A run's result, if it was made as it would be made now: with these facts."""
    if not file.is_file():
        return None
    record: Record = json.loads(file.read_text())
    # As the file has them: JSON has no tuples.
    same = all(record[name] == fact for name, fact in json.loads(json.dumps(facts)).items())
    return record if same else None


def run_all(
    workers: int,
    calls: Mapping[str, Call],
    said: Callable[[str], str] = lambda _: "done",
    *,
    runs_per_process: int | None = 1,
) -> int:
    """Calls functions in processes of their own, so many at a time; how many failed.

    Args:
        workers: processes at a time.
        calls: by the name that is printed.
        said: what is printed of one that did not fail, by its name.
        runs_per_process: after which a process makes place for a new one; None: it does all.
    """
    failed = 0
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=runs_per_process) as pool:
        waiting: dict[Future[None], str] = {pool.submit(*call): name for name, call in calls.items()}
        for number, done in enumerate(as_completed(waiting), start=1):
            name, error = waiting[done], done.exception()
            failed += error is not None
            words = f"failed: {error!r}" if error else said(name)
            print(f"{number}/{len(calls)} {name}: {words}", file=sys.stderr, flush=True)
    return failed


def write_runs(
    name: str,
    tables: Callable[[], str],
    results: Mapping[str, Any],
    options: argparse.Namespace,
    *,
    found: Sequence[Record],
    wanted: int,
    before: Sequence[Record] = (),
) -> None:
    """Prints and writes what is there of a benchmark's runs.

    Args:
        name: of the benchmark.
        tables: makes Markdown of them, where there are any.
        results: everything measured.
        options: of the command line.
        found: runs that are there.
        wanted: how many there are to be.
        before: runs that these begin from, which took their time too.
    """
    text = tables() if found else "No run has finished."
    seconds = sum(record["cpu_seconds"] for record in [*found, *before])
    notes = [f"{len(found)} of {wanted} runs, {seconds / 3600:.1f} core-hours of training"]
    notes += ["a few steps, to see that it runs: nothing about quality"] if options.quick else []
    write_results(name, text, results, options, notes=notes)
