"""``uld-ds generate``: a teacher's answers to prompts, as data to distil from."""

from __future__ import annotations

import json
import logging
import os
from typing import Annotated

import typer

from launcher.commands.options import OUTPUT, FactsAsJson, Overrides, RecipeFile, TeacherName
from uld_ds.recipe import load_recipe

_SHOWN = ("rows", "unusable", "duplicates", "too_long", "prompts", "tokens", "empty", "truncated", "dropped", "train")


def add_to(app: typer.Typer) -> None:
    """Add the verb ``generate`` to the command line."""
    app.command("generate")(generate)


def generate(
    recipe: RecipeFile,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", help="Folder of the answers. Default: the recipe's generation.output.", rich_help_panel=OUTPUT
        ),
    ] = None,
    teacher: TeacherName = None,
    overrides: Overrides = None,
    as_json: FactsAsJson = False,
) -> None:
    """Let a recipe's teacher answer its prompts, into Parquet files. Run again, it goes on where it stopped."""
    loaded = load_recipe(recipe, overrides or [])
    chosen = loaded.teacher_named(teacher)
    if output is not None:
        generation = loaded.generation.model_copy(update={"output": output})
        loaded = loaded.model_copy(update={"generation": generation})
    logging.disable(logging.WARNING)
    # Ray's core remarks, as an error, on how Ray Data starts its actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from launcher.drivers.generate import generate_answers

    logging.disable(logging.NOTSET)
    facts = generate_answers(loaded, chosen.name)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(facts["output"])
    for name in (*_SHOWN, "held_out"):
        typer.echo(f"  {name.replace('_', ' '):12} {facts[name]:,}")
