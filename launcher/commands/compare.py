"""``uld-ds compare``: students of several runs beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import OUTPUT
from launcher.terminal.find_run import HELP, find_run
from launcher.terminal.output_files import cannot_write, check_target
from uld_ds.errors import UserError
from uld_ds.runs.folder import NAMES, RunFolder
from uld_ds.utils.files import in_home

if TYPE_CHECKING:
    from uld_ds.reporting.comparison import ComparedRun


def add_to(app: typer.Typer) -> None:
    """Add the verb ``compare`` to the command line."""
    app.command("compare")(compare)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN ...", help=HELP, show_default=False)],
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Also write one self-contained page, with pictures.", rich_help_panel=OUTPUT
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Put runs side by side, as a Markdown table: objective, tokens used, time, held-out scores with intervals.

    Scores of answers are there for runs whose student `uld-ds evaluate` has measured (into NAME-evaluation, its
    default). Its folder for another model, e.g. the teacher, may be named like a run.
    """
    if len(runs) < 2:
        raise UserError("RUN", f"only {runs[0]!r} to compare", "name two runs or more")
    if html is not None:
        check_target(html, "--html")
    from uld_ds.reporting.comparison import ComparedRun, cautions, markdown

    compared = [ComparedRun.of(_found(run)) for run in runs]
    if html is not None:
        _write_page(html, compared)
    if as_json:
        typer.echo(json.dumps({"runs": [run.to_json() for run in compared], "cautions": cautions(compared)}))
    else:
        typer.echo(markdown(compared))


def _found(run: str) -> Path:
    from uld_ds.reporting.comparison import is_evaluation

    place = in_home(run)
    if is_evaluation(place):
        return place
    folder = find_run(run)
    if not RunFolder(folder).recipe.is_file():
        raise UserError(
            "RUN", f"{run!r} has no {NAMES.recipe}", "name the folder of a training run or of an evaluation"
        )
    return folder


def _write_page(file: Path, compared: list[ComparedRun]) -> None:
    from uld_ds.reporting.comparison_html import comparison_page
    from uld_ds.utils.files import write_whole

    try:
        write_whole(file, comparison_page(compared))
    except OSError as error:
        raise cannot_write(file, "--html", error) from error
