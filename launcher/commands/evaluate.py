"""``uld-ds evaluate``: how good a model's answers to held-out prompts are."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import typer

from launcher.commands.options import OUTPUT, FactsAsJson, Overrides, RecipeFile
from uld_ds.recipe import load_recipe


def add_to(app: typer.Typer) -> None:
    """Add the verb ``evaluate`` to the command line."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id or package:NAME.", show_default=False)],
    recipe: RecipeFile,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            help="Folder for what is found. Default: NAME-evaluation beside the run.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: FactsAsJson = False,
) -> None:
    """Let a model answer the recipe's held-out prompts, and score it: percentages with 95 % intervals."""
    loaded = load_recipe(recipe, overrides or [])
    logging.disable(logging.WARNING)
    from launcher.drivers.evaluate import evaluate_model

    logging.disable(logging.NOTSET)
    facts = evaluate_model(model, loaded, output)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        typer.echo("\n".join(_lines(facts)))


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{name:14} {value:6.2f}  [{facts['intervals'][name][0]:.2f}, {facts['intervals'][name][1]:.2f}]"
        for name, value in facts["scores"].items()
    ]
    bits = facts["bits_per_byte"]
    if bits is not None:
        lines.append(f"{'bits per byte':14} {bits['mean']:.4f}  [{bits['low']:.4f}, {bits['high']:.4f}]")
    for suite, found in facts["suites"].items():
        for metric, value in found["metrics"].items():
            error = found["errors"].get(metric)
            lines.append(f"{suite} {metric} {value:.4f}" + (f" +- {error:.4f}" if error is not None else ""))
    counted = ("prompts", "unanswerable", "truncated", "too_long")
    lines.append(", ".join(f"{facts[name]:,} {name.replace('_', ' ')}" for name in counted))
    return [*lines, f"predictions in {facts['output']}"]
