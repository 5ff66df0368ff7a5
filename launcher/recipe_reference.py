"""The recipe reference: every key as a page of Markdown, from the models that validate recipes."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from uld_ds.errors import one_line
from uld_ds.recipe import Recipe

_HEAD = """# Recipe reference

Every key of a recipe, its type, its default, and what it does. This page is made from the models in
`uld_ds/recipe/` by `uld-ds recipes reference`. A key that is not here is an error.
"""
_LARGEST_DEFAULT = 60


def recipe_reference() -> str:
    """Write the recipe reference as a page of Markdown."""
    return "\n".join([_HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for name, field in Recipe.model_fields.items():
        needed = " (required)" if field.is_required() else ""
        yield f"## {name}{needed}\n"
        for model in _models(field.annotation):
            yield from _section(name, model)


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    about = (model.__doc__ or "").strip()
    # BaseModel's own docstring is not the model's.
    if about and model.__doc__ != BaseModel.__doc__ and "__doc__" in vars(model):
        yield f"{one_line(about, None)}\n"
    yield "| key | type | default | |\n|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}"
        yield f"| `{key}` | {_kind(field)} | {_default(field)} | {_about(field)} |"
        nested += [(key, inner) for inner in _models(field.annotation)]
    yield ""
    for key, inner in nested:
        variant = _discriminator(inner)
        yield f"### {key}{f' with `{variant}`' if variant else ''}\n"
        yield from _section(key, inner)


def _discriminator(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("source")
    values = get_args(field.annotation) if field is not None else ()
    return f"source: {values[0]}" if field is not None and field.is_required() and len(values) == 1 else None


def _models(kind: Any) -> list[type[BaseModel]]:
    """Find models inside a type, each once."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    found: list[type[BaseModel]] = []
    for part in get_args(kind):
        found += [model for model in _models(part) if model not in found]
    return found


def _kind(field: FieldInfo) -> str:
    # A bar would end the table's cell.
    return _named(field.annotation).replace("|", "\\|")


def _named(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(parts[0])
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys("null" if part is type(None) else _named(part) for part in parts))
    if origin is list:
        return f"list of {_named(parts[0])}"
    if origin is dict:
        return "mapping"
    if origin is tuple:
        return "list of " + ", ".join(map(_named, parts))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "true | false", Any: "any"}.get(kind, str(kind))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    said = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else str(value)
    return f"`{said}`" if said and len(said) <= _LARGEST_DEFAULT else "see its class"


def _about(field: FieldInfo) -> str:
    return one_line((field.description or "").replace("``", "`"), None).replace("|", "\\|")
