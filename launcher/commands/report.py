"""``uld-ds report``: a run as a page that a person mails to a colleague."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import OUTPUT
from launcher.terminal.find_run import HELP, find_run
from launcher.terminal.output_files import cannot_write, check_target
from uld_ds.errors import UserError
from uld_ds.runs.folder import NAMES, RunFolder


def add_to(app: typer.Typer) -> None:
    """Add the verb ``report`` to the command line."""
    app.command("report")(report)


def report(
    run: Annotated[str, typer.Argument(help=HELP, show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help=f"Default: {NAMES.report_page} in the run's folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print its path as a JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Write one self-contained HTML page about a run, finished or not, and print its path."""
    folder = find_run(run)
    target = output or RunFolder(folder).report_page
    check_target(target, "--output")
    if not RunFolder(folder).recipe.is_file():
        raise UserError("RUN", f"{str(folder)!r} has no {NAMES.recipe}", "name the folder of a training run")
    from uld_ds.reporting.run_html import write_report

    try:
        write_report(folder, target)
    except OSError as error:
        raise cannot_write(target, "--output", error) from error
    typer.echo(json.dumps({"report": str(target)}) if as_json else str(target))
