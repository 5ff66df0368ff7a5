"""Pydantic's errors about a recipe, as one line that names the key, the value and the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from uld_ds.errors import UserError

LONGEST_VALUE = 80
_NAME = re.compile(r"[\w-]{1,64}")


def as_user_error(error: ValidationError, tree: Mapping[str, Any], model: type[BaseModel]) -> UserError:
    """Turn the most telling of a validation's errors into one that names key, value and fix.

    Args:
        error: what pydantic raised.
        tree: the input that was validated.
        model: the model that refused it.
    """
    found = {_dotted(detail, tree): detail for detail in reversed(error.errors(include_url=False))}
    # A value that fits no member of a union is reported once per member; the deepest report is the one meant.
    found = {key: detail for key, detail in found.items() if not any(other.startswith(f"{key}.") for other in found)}
    # Unknown keys first: a misspelled key is often also reported as the right key missing. Then in written order.
    key, detail = min(reversed(found.items()), key=lambda item: item[1]["type"] != "extra_forbidden")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    problem, fix = _problem_and_fix(key, detail, model)
    return UserError(key, problem + more, fix)


def _problem_and_fix(key: str, detail: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    value, context = _shown(detail["input"]), detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key (value {value})", _nearest(key, list(known_keys(model)))
        case "missing" | "union_tag_not_found":
            return "is missing", "set it in the recipe or with --set"
        case "value_error":
            return str(context["error"]), "change one of the values named"
        case "literal_error":
            return f"{value} is not known", f"choose {context['expected']}"
        case "union_tag_invalid":
            return f"{context['tag']!r} is not known", f"choose one of {context['expected_tags']}"
        case "model_type":
            return f"{value} is not a section", "write its keys below it"
        case "string_type":
            return f"{detail['msg']} (value {value})", f"put text in quotes: without them YAML reads {_kind(detail)}"
        case _:
            return f"{detail['msg']} (value {value})", "give a value of that kind"


def _dotted(detail: ErrorDetails, tree: Any) -> str:
    """Write an error's key as a user does: of pydantic's location, only what is in the input, or missing there.

    Pydantic also puts the tag of a union's member there (``data.train.files.path``), and a user may have a key of
    the same name, so the input decides.
    """
    if not detail["loc"]:
        return "recipe"
    *parents, last = detail["loc"]
    written: list[str] = []
    for part in parents:
        if _has(tree, part):
            tree = tree[part]
            written.append(_called(tree, part))
    if detail["type"] == "missing" or _has(tree, last):
        written.append(_called(tree[last], last) if _has(tree, last) else str(last))
    if detail["type"].startswith("union_tag"):
        written.append(detail["ctx"]["discriminator"].strip("'"))
    return ".".join(written)


def _called(item: Any, part: str | int) -> str:
    """Call a section in a list by its name, as ``--set`` does; anything else by its key or number."""
    name = item.get("name") if isinstance(part, int) and isinstance(item, Mapping) else None
    return name if isinstance(name, str) and _NAME.fullmatch(name) else str(part)


def _has(tree: Any, part: str | int) -> bool:
    if isinstance(part, int) and isinstance(tree, Sequence) and not isinstance(tree, str):
        return part < len(tree)
    return isinstance(tree, Mapping) and part in tree


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every key of a recipe, dotted; those of alternatives one after the other."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections_in(field.annotation):
            yield from known_keys(section, f"{prefix}{name}.")


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections inside a key's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def _nearest(key: str, known: Sequence[str]) -> str:
    """Advise on an unknown key: name the nearest known one of its section, or else of any section."""
    section, _, name = key.rpartition(".")
    known = [_of_same_teacher(other, key) for other in known]
    if key in known:
        return f"remove it; it belongs to another kind of {section}"
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    # Of keys with the same name, the one that is written with the fewest sections.
    for candidates, cutoff in ((siblings, 0.6), (sorted(known, key=lambda other: other.count(".")), 0.8)):
        names = [other.rpartition(".")[2] for other in candidates]
        near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
        if near:
            return f"did you mean {candidates[names.index(near[0])]}?"
    return f"remove it; known here: {', '.join(dict.fromkeys(key.rpartition('.')[2] for key in siblings))}"


def _of_same_teacher(known: str, key: str) -> str:
    """Write a known key of one of several teachers with the name of the one that another key is of."""
    first, *rest = key.split(".")
    if first != "teachers" or len(rest) < 2 or not known.startswith("teachers."):
        return known
    return f"teachers.{rest[0]}.{known.removeprefix('teachers.')}"


def _kind(detail: ErrorDetails) -> str:
    """Name what YAML made of something that should be text."""
    found = detail["input"]
    if found is None:
        return "nothing"
    kinds: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", dict: "a mapping"}
    return kinds.get(type(found), "a list")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
