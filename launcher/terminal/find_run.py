"""Runs as a person names them: a folder, or a name in the storage that is at hand."""

from __future__ import annotations

import os
from pathlib import Path

from uld_ds.errors import UserError
from uld_ds.runs.status import is_run, runs_in
from uld_ds.utils.files import in_home

HELP = "A run's folder, or its name in `runs` or in the storage that ULD_DS__RUN__STORAGE names."
_SHOWN = 8


def find_run(run: str) -> Path:
    """Find the folder of a run.

    Raises:
        UserError: there is no such run.
    """
    storage = in_home(os.environ.get("ULD_DS__RUN__STORAGE", "runs"))
    for folder in (in_home(run), storage / run):
        if folder.is_dir() and is_run(folder):
            return folder
    known = runs_in(Path(run)) or runs_in(storage)
    fix = f"runs there: {', '.join(known[:_SHOWN])}" if known else "give the folder run.storage/run.name of one"
    raise UserError("RUN", f"no run at {run!r}", fix)
