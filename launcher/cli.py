"""The command line: one verb per file in commands/, imported only when it is used."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from launcher.commands import recipes, train
from uld_ds import __version__
from uld_ds.errors import RunError, UserError

app = typer.Typer(
    name="uld-ds",
    help="Distil large language models into small ones across tokenizers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
train.add_to(app)
recipes.add_to(app)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=lambda on: _print_version(on), help="Show the version."
        ),
    ] = False,
) -> None:
    """Distil large language models into small ones across tokenizers."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"uld-ds {__version__}")
        raise typer.Exit


def main() -> None:
    """Runs the command line. Exit status: 0 done, 1 the run failed, 2 wrong use."""
    # Imported libraries print banners of their own; what this program says is below.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except (UserError, RunError) as error:
        Console(stderr=True, highlight=False).print(
            f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True
        )
        sys.exit(error.exit_status)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))
