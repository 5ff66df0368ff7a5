"""A stop before a machine goes: ``python -m launcher.drain RECIPE`` asks its run to stop, and returns when it has.

A pod that is to end is given a grace period, but the processes in it are not: ``ray start`` leaves with the first
signal and takes the ranks with it. Run before that signal (a preStop hook), this lets a run write its last checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from uld_ds.errors import UserError
from uld_ds.recipe import load_recipe
from uld_ds.runs.folder import RunFolder

# Beyond the run's own grace period: it also has to end its workers and its record.
_SECONDS_TO_LEAVE = 20.0


def drain(recipe: Path, poll_seconds: float = 0.5) -> bool:
    """Ask the recipe's run to stop if its driver is on this machine; wait for its processes on this machine.

    A machine without the driver asks nobody: ranks that are lost with it start again elsewhere.

    Args:
        recipe: as the driver was given it; the file, for it may be named differently.
        poll_seconds: between two looks.

    Returns:
        Whether they have ended. If not, the run's ``cluster.grace_seconds`` are over.

    Raises:
        UserError: the file is no recipe.
    """
    loaded = load_recipe(recipe)
    deadline = time.monotonic() + loaded.cluster.grace_seconds + _SECONDS_TO_LEAVE
    asked = False
    while True:
        driver = any(_drivers(recipe.resolve()))
        if driver and not asked:
            # torch is imported with it: a machine that nobody uses any more need not wait for that.
            from uld_ds.runs.stop_file import StopFile

            StopFile(loaded.run_dir).ask()
            asked = True
        if not driver and not any(_ranks(RunFolder(loaded.run_dir.resolve()).logs)):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_seconds)


def _drivers(recipe: Path) -> Iterator[psutil.Process]:
    """Find the processes that run ``train`` on this very file."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "train" in words[:4] and any((Path(process.cwd()) / word).resolve() == recipe for word in words[2:]):
                yield process
        except (psutil.Error, OSError):
            # It has just ended, or is somebody else's.
            continue


def _ranks(logs: Path) -> Iterator[psutil.Process]:
    """Find the processes that write the run's logs: one per rank."""
    for process in psutil.process_iter():
        try:
            if any(Path(file.path).parent == logs for file in process.open_files()):
                yield process
        except (psutil.Error, OSError):
            continue


def main() -> None:
    """Drain this machine for the recipe on the command line.

    Exit status: 0 nothing of the run is left here, 1 its grace period was too short, 2 wrong use.
    """
    if len(sys.argv) != 2:
        sys.exit("error: give the recipe: python -m launcher.drain recipe.yaml")
    try:
        sys.exit(0 if drain(Path(sys.argv[1])) else 1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
