"""``uld-ds report``: a run as a page that a person mails to a colleague."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.runs import HELP, find_run
from uld_ds.errors import UserError
from uld_ds.report.snapshots_folder import REPORT


def add_to(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("report")(report)


def report(
    run: Annotated[str, typer.Argument(help=HELP, show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help=f"Default: {REPORT} in the run's folder.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run, finished or not, and print its path."""
    folder = find_run(run)
    target = output or folder / REPORT
    if target.is_dir():
        raise UserError("--output", f"{str(target)!r} is a folder", "name a file in it")
    if not target.parent.is_dir():
        raise UserError("--output", f"no folder {str(target.parent)!r}", "make it, or choose another file")
    if not (folder / "recipe.yaml").is_file():
        raise UserError("RUN", f"{str(folder)!r} has no recipe.yaml", "name the folder of a training run")
    from uld_ds.report.run_report import write_report

    try:
        write_report(folder, target)
    except OSError as error:
        problem = f"cannot write {str(target)!r} ({error.strerror})"
        raise UserError("--output", problem, "choose another file") from error
    typer.echo(str(target))
