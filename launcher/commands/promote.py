"""``uld-ds promote``: a registered student gets an alias, if it is no worse than whoever has it."""

from __future__ import annotations

import getpass
import json
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import OUTPUT
from uld_ds.errors import UserError


def add_to(app: typer.Typer) -> None:
    """Add the verb ``promote`` to the command line."""
    app.command("promote")(promote)


def registry_uri(given: str | None) -> str:
    """Find the registry: the option, MLFLOW_TRACKING_URI, or the database beside ``runs``.

    Raises:
        UserError: there is none of them.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and Path("runs/mlflow.db").is_file():
        from uld_ds.tracking.mlflow_runs import sqlite_uri

        uri = sqlite_uri(Path("runs/mlflow.db").resolve(), "--tracking-uri")
    if uri is None:
        raise UserError("--tracking-uri", "is missing", "give it, or set MLFLOW_TRACKING_URI")
    return uri


def promote(
    name: Annotated[str, typer.Argument(help="A registered model.", show_default=False)],
    version: Annotated[int, typer.Argument(help="The version that is to get the alias.", min=1, show_default=False)],
    alias: Annotated[str, typer.Option(help="The alias to move, e.g. champion.", show_default=False)],
    tolerance: Annotated[
        float, typer.Option(help="How much worse a metric may be, as a share of the incumbent's.", min=0, max=1)
    ] = 0.01,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe whose held-out rows and metrics decide. Default: that of the version's own run."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of that recipe. Repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Move it even if it is worse; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; written to both versions with your name.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="The registry's. Default: MLFLOW_TRACKING_URI, else runs/mlflow.db.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the decision as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure a version and the alias's holder on the same held-out rows; move the alias if it is no worse."""
    if force and not (reason and reason.strip()):
        raise UserError("--force", "has no reason", "say why with --reason TEXT")
    if reason and not force:
        raise UserError("--reason", "has no effect without --force", "leave it out, or add --force")
    uri = registry_uri(tracking_uri)
    logging.disable(logging.WARNING)
    from launcher.drivers.promote import promote_version

    logging.disable(logging.NOTSET)
    record = promote_version(
        name,
        str(version),
        alias=alias,
        tolerance=tolerance,
        recipe_file=recipe,
        overrides=overrides or [],
        uri=uri,
        forced=(getpass.getuser(), reason) if force and reason else None,
    )
    if as_json:
        typer.echo(json.dumps(record))
        return
    for metric, values in record["metrics"].items():
        before = "-" if values["incumbent"] is None else f"{values['incumbent']:.4f}"
        typer.echo(f"{metric:14} {before} -> {values['candidate']:.4f}")
    who = "nobody" if record["incumbent"] is None else f"version {record['incumbent']}"
    typer.echo(f"{name}@{alias}: {who} -> version {version}")
