"""``uld-ds store``: teacher outputs over a corpus, computed once, for students of any tokenizer."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.commands.options import OUTPUT, FactsAsJson, Overrides, RecipeFile, TeacherName
from uld_ds.recipe import load_recipe

if TYPE_CHECKING:
    from uld_ds.teachers.store.manifest import StoreManifest

store = typer.Typer(help="Build and look at spectrum stores: teachers that need no GPU.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the verbs of ``store`` to the command line."""
    app.add_typer(store, name="store")


@store.command("build")
def build(
    recipe: RecipeFile,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", help="Folder or URL of the store. Default: the recipe's teacher.path.", rich_help_panel=OUTPUT
        ),
    ] = None,
    teacher: TeacherName = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="transformers or vllm. Default: the recipe's store.engine.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    as_json: FactsAsJson = False,
) -> None:
    """Run a recipe's teacher over its data and keep what it says. Run again, it goes on where it stopped."""
    chosen_engine = [] if engine is None else [f"store.engine={engine}"]
    loaded = load_recipe(recipe, [*(overrides or []), *chosen_engine], change=lambda tree: _asked(tree, teacher))
    chosen = loaded.teacher_named(teacher)
    if output is not None:
        loaded = loaded.with_teachers({chosen.name: {"path": output}})
        chosen = loaded.teacher_named(teacher)
    logging.disable(logging.WARNING)
    from launcher.drivers.store import build_store

    logging.disable(logging.NOTSET)
    _print(build_store(loaded, chosen.name), str(chosen.path), as_json=as_json)


def _asked(tree: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Copy a recipe with the teacher that is to be asked by its model, wherever its outputs are read from otherwise.

    A teacher with a server is asked there.
    """
    if isinstance(tree.get("teacher"), dict):
        return tree | {"teacher": _by_model(tree["teacher"])}
    teachers = tree.get("teachers")
    if not isinstance(teachers, list):
        return tree
    only = teachers[0].get("name") if len(teachers) == 1 and isinstance(teachers[0], dict) else None
    is_meant = [isinstance(own, dict) and own.get("name") == (name or only) for own in teachers]
    chosen = [_by_model(own) if meant else own for own, meant in zip(teachers, is_meant, strict=True)]
    return tree | {"teachers": chosen}


def _by_model(teacher: dict[str, Any]) -> dict[str, Any]:
    return teacher | {"source": "online" if teacher.get("server") is None else "served"}


@store.command("info")
def info(
    path: Annotated[str, typer.Argument(help="A store's folder or fsspec URL.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.", rich_help_panel=OUTPUT)] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and compare its checksum.")] = False,
) -> None:
    """Show whose outputs a store holds, about what, and how precisely."""
    from uld_ds.teachers.store.reader import SpectrumStore

    found = SpectrumStore.open(path, key="PATH")
    if verify:
        found.verify()
    _print(found.manifest, path, as_json=as_json)


def facts_of(manifest: StoreManifest) -> dict[str, Any]:
    """Collect the facts of a store that ``info`` shows, as plain values."""
    measured = manifest.measured
    return {
        "teacher": manifest.teacher,
        "revision": manifest.revision,
        "tokenizer_digest": manifest.tokenizer_digest,
        "data_digest": manifest.data_digest,
        "examples": manifest.examples,
        "teacher_tokens": manifest.teacher_tokens,
        "bytes_per_token": manifest.bytes_per_token,
        "top_ids": manifest.top_ids,
        "top_bytes_per_token": manifest.top_bytes_per_token,
        "mean_relative_error": measured.mean_relative_error if measured else None,
        "gradient_cosine": measured.gradient_cosine if measured else None,
        "codec": manifest.codec.model_dump(mode="json"),
        "prompt_template": manifest.prompt_template,
        "system_prompt": manifest.system_prompt,
        "max_length": manifest.max_length,
        "temperature": manifest.temperature,
        "shards": len(manifest.shards),
        **({} if manifest.served is None else {"served": manifest.served.model_dump(mode="json")}),
    }


def _print(manifest: StoreManifest, path: str, *, as_json: bool) -> None:
    facts = facts_of(manifest)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{path}")
    for name, value in facts.items():
        typer.echo(f"  {name.replace('_', ' '):20} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
