"""Values from ``--set`` and the environment: text for keys that take text, YAML for all others.

YAML is version 1.1 here (PyYAML 6, OmegaConf 2.4): a line that begins with ``#`` is nothing, ``no`` is false,
``{prompt}`` a mapping, ``010`` eight and ``12:30:00`` a number of seconds. Whoever gives a key of text means none of
that; whoever gives a number hardly means the last two, which are refused, in a recipe's file as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from uld_ds.errors import UserError, one_line
from uld_ds.recipe.renamed_keys import RENAMED_KEYS
from uld_ds.recipe.schema import Recipe

_NOTHING = {"", "~", "null", "Null", "NULL"}
_QUOTED = re.compile(r"""\s*(?:'.*'|".*")\s*""", re.DOTALL)
_OCTAL_OR_SEXAGESIMAL = re.compile(r"[-+]?(?:0[0-7_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)")
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


def layer_of(origin: str, key: str, value: str) -> DictConfig:
    """Make a layer of a recipe from one value.

    Args:
        origin: Where it was given, for messages: ``--set``, or a variable's name.
        key: Dotted key.
        value: Text of the value. For a key that takes text this is the text itself, also if it looks like something
            else; only nothing and ``null`` are null, where the key takes that, and a value in quotes is what YAML
            reads in them. A list or a section, where the key takes one, and any other key's value are YAML.

    Raises:
        UserError: no YAML, a reference that is none, or a number that is another one in YAML than it seems.
    """
    layer = OmegaConf.create({})
    try:
        OmegaConf.update(layer, key, _read(key, value))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(origin, f"{value!r} for {key} is not YAML ({one_line(error, None)})", "quote it") from error
    return layer


def check_numbers(text: str, key: str = "") -> None:
    """Check that no number of a YAML text is written in a way that YAML 1.1 alone reads, as another number.

    Args:
        text: YAML that can be read.
        key: Dotted key of the whole text.

    Raises:
        UserError: names the key and the number that it would be.
    """
    for place, node in _scalars(yaml.compose(text, Loader=yaml.SafeLoader), key):
        is_number = node.style is None and node.tag in _NUMBERS
        if is_number and _OCTAL_OR_SEXAGESIMAL.fullmatch(node.value):
            number = yaml.safe_load(node.value)
            fix = f'write {number}, or "{node.value}" in quotes if it is text'
            raise UserError(place, f"{node.value} is the number {number} in YAML 1.1", fix)


def _read(key: str, value: str) -> Any:
    takes = set(_kinds_of(key))
    if str not in takes:
        return _yaml(key, value)
    if value in _NOTHING and (NoneType in takes or not value):
        return None
    if _QUOTED.fullmatch(value):
        quoted = _yaml_or_none(value)
        return quoted if isinstance(quoted, str) else value
    if type(_yaml_or_none(value)) in takes & {list, dict}:
        return _yaml(key, value)
    return value


def _yaml(key: str, value: str) -> Any:
    read = _loaded(value)
    check_numbers(value, key)
    return read


def _yaml_or_none(value: str) -> Any:
    try:
        return _loaded(value)
    except (yaml.YAMLError, OmegaConfBaseException):
        return None


def _loaded(value: str) -> Any:
    """Read YAML as OmegaConf reads it: ``1e-4`` is a number there, which PyYAML alone takes for text."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore[index,call-overload]


def _kinds_of(key: str) -> Iterator[type]:
    """Yield what a key takes: str, NoneType, list, dict (a section, too), or another type; nothing if it is unknown."""
    found: list[Any] = [Recipe]
    for name in re.split(r"(?<!\\)[.\[\]]+", RENAMED_KEYS.get(key, key).rstrip("]")):
        found = [inner for annotation in found for inner in _inside(annotation, name)]
    for annotation in found:
        origin = get_origin(annotation)
        if origin is Literal:
            yield from map(type, get_args(annotation))
        elif origin is None and isinstance(annotation, type):
            yield dict if issubclass(annotation, BaseModel) else annotation
        elif origin is not None:
            yield list if origin is tuple else origin


def _inside(annotation: Any, name: str) -> Iterator[Any]:
    """Yield the alternatives of what is under a name in a value of a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if name in annotation.model_fields:
            yield from _alternatives(annotation.model_fields[name].annotation)
    elif get_origin(annotation) in (dict, list, tuple):
        yield from _alternatives(get_args(annotation)[-1])


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _alternatives(argument)
    else:
        yield annotation


def _scalars(node: yaml.Node | None, key: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Yield every scalar of a YAML tree with its key."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _scalars(value, f"{key}.{name.value}" if key else str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield from _scalars(value, f"{key}[{place}]")
