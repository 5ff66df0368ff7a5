"""``uld-ds train``: run a recipe here, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import json
import logging
from typing import Annotated

import typer

from launcher.commands.options import OUTPUT, FactsAsJson, Overrides, RecipeFile
from uld_ds.recipe import load_recipe


def add_to(app: typer.Typer) -> None:
    """Add the verb ``train`` to the command line."""
    app.command("train")(train)


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: FactsAsJson = False,
) -> None:
    """Distil a student. Running the same run again resumes it where its last checkpoint left off."""
    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        if as_json:
            typer.echo(json.dumps(loaded.model_dump(mode="json")))
        else:
            typer.echo(loaded.to_yaml(), nl=False)
        return
    # Heavy imports (torch, deepspeed, ray, mlflow: some ten seconds) only now. DeepSpeed greets a machine without
    # an accelerator with a warning; that is no news here.
    logging.disable(logging.WARNING)
    from launcher.drivers.train import run_training
    from launcher.terminal.summary import print_summary

    logging.disable(logging.NOTSET)
    facts = run_training(loaded)
    print_summary(facts, loaded)
    if as_json:
        typer.echo(json.dumps(facts))
