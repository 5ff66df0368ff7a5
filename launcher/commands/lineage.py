"""``uld-ds lineage``: where a registered student comes from."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from launcher.commands.options import OUTPUT
from launcher.commands.promote import registry_uri
from uld_ds.errors import UserError


def add_to(app: typer.Typer) -> None:
    """Add the verb ``lineage`` to the command line."""
    app.command("lineage")(lineage)


def lineage(
    model: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="Or NAME/VERSION.", show_default=False)],
    tracking_uri: Annotated[
        str | None, typer.Option(help="The registry's. Default: MLFLOW_TRACKING_URI, else runs/mlflow.db.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the chain as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Show the chain behind a student: version, run, teacher, store, data, recipe, code."""
    name, version, alias = _parsed(model)
    uri = registry_uri(tracking_uri)
    logging.disable(logging.WARNING)
    from uld_ds.registry.lineage import lineage as chain_of
    from uld_ds.tracking import mlflow_runs

    logging.disable(logging.NOTSET)
    chain = chain_of(mlflow_runs.open_client(uri, "MLFLOW_TRACKING_URI"), name, version, alias)
    if as_json:
        typer.echo(json.dumps(chain))
    else:
        _show(chain)


def _parsed(model: str) -> tuple[str, str | None, str | None]:
    name, at, alias = model.rpartition("@")
    if at and name and alias:
        return name, None, alias
    name, slash, version = model.rpartition("/")
    if slash and name and version.isdecimal():
        return name, version, None
    raise UserError("NAME@ALIAS", f"{model!r} is neither NAME@ALIAS nor NAME/VERSION", "write e.g. student@champion")


def _show(chain: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for link, fields in chain.items():
        console.print(Text(link.replace("_", " "), style="bold"))
        for field, value in (fields or {"": "-"}).items():
            console.print(Text(f"  {field.replace('_', ' '):22} {_plain(value)}"), soft_wrap=True)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
