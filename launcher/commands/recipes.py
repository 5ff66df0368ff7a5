"""``uld-ds recipes``: the recipes that ship with the package."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import OUTPUT
from launcher.terminal.output_files import cannot_write, check_target
from uld_ds.errors import UserError

recipes = typer.Typer(help="List and copy the recipes that ship with uld-ds.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the verbs of ``recipes`` to the command line."""
    app.add_typer(recipes, name="recipes")


def shipped_recipes() -> dict[str, str]:
    """Read the recipes that ship with the package: name -> YAML text."""
    folder = resources.files("launcher.recipes")
    files = [item for item in folder.iterdir() if item.name.endswith(".yaml")]
    return {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in sorted(files, key=lambda item: item.name)
    }


@recipes.command("list")
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Show name and purpose of every recipe."""
    purposes = {name: text.split("\n", 1)[0].lstrip("# ") for name, text in shipped_recipes().items()}
    if as_json:
        typer.echo(json.dumps(purposes))
        return
    width = max(map(len, purposes))
    for name, purpose in purposes.items():
        typer.echo(f"{name:{width}}  {purpose}")


@recipes.command("reference")
def print_reference() -> None:
    """Print every key of a recipe with its type, default and meaning, as Markdown."""
    from launcher.recipe_reference import recipe_reference

    typer.echo(recipe_reference(), nl=False)


@recipes.command("copy")
def copy_recipe(
    name: Annotated[
        str,
        typer.Argument(help="A name that `recipes list` shows.", autocompletion=lambda: list(shipped_recipes())),
    ],
    target: Annotated[Path | None, typer.Argument(help="Where to write it. Default: NAME.yaml here.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the file's path as a JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Write a recipe to a file of your own, to change it."""
    known = shipped_recipes()
    if name not in known:
        raise UserError("NAME", f"no recipe {name!r}", f"choose one of {', '.join(known)}")
    path = target or Path(f"{name}.yaml")
    check_target(path, "TARGET")
    try:
        # Not over a file that is there.
        with path.open("x", encoding="utf-8") as file:
            file.write(known[name])
    except FileExistsError:
        raise UserError("TARGET", f"{str(path)!r} exists", "choose another file") from None
    except OSError as error:
        raise cannot_write(path, "TARGET", error) from error
    typer.echo(json.dumps({"recipe": str(path)}) if as_json else str(path))
