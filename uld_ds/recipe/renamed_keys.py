"""Former names of a recipe's keys and values.

The old names are taken wherever a recipe comes from: its file, the environment, ``--set``, the folder of an older run.
What compares runs keeps the old ones, so that those of before and after the change still do: a recipe's digest, and the
params and tags of MLflow runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

from uld_ds.errors import UserError

log = logging.getLogger(__name__)

RENAMED_KEYS = {
    "teacher.remember": "teacher.cache",
    "objective.normalise": "objective.normalize",
    "student.lora.quantise": "student.lora.quantize",
}
"""Old name of a key -> new one, in the same section."""

RENAMED_VALUES = {"objective.likelihood_divergence": {"kl": "forward_kl"}}
"""Key -> old name of a value -> new one."""


def with_current_names(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Copy a recipe, or a part of one, with the new names; log once in a process what is called otherwise now.

    Args:
        tree: plain values, sections as mappings.

    Raises:
        UserError: a key is set by both of its names, to different values.
    """
    return _renamed(tree, RENAMED_KEYS, RENAMED_VALUES, _notice)


def with_former_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a recipe, or a part of one, with the old names."""
    keys = {new: old for old, new in RENAMED_KEYS.items()}
    values = {key: {new: old for old, new in names.items()} for key, names in RENAMED_VALUES.items()}
    return _renamed(tree, keys, values, lambda _: None)


def _renamed(
    tree: Mapping[Any, Any],
    keys: Mapping[str, str],
    values: Mapping[str, Mapping[str, str]],
    note: Callable[[str], None],
    section: str = "",
) -> dict[str, Any]:
    """Copy a mapping with keys and values renamed, in the same order.

    Args:
        tree: one section, or the whole recipe.
        keys: dotted key -> dotted new key.
        values: dotted key -> value -> new value.
        note: called with a sentence about each name that changes.
        section: dotted name of ``tree`` with a dot at its end; empty for the whole recipe.
    """
    renamed: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{section}{name}"
        if isinstance(value, Mapping):
            value = _renamed(value, keys, values, note, f"{key}.")
        elif isinstance(value, str) and value in values.get(key, {}):
            new_value = values[key][value]
            note(f"{key}: {value} is called {new_value} now")
            value = new_value
        if key in keys:
            note(f"{key} is called {keys[key]} now")
            name = keys[key].rpartition(".")[2]
        if name in renamed and renamed[name] != value:
            by_old_name, by_new_name = (value, renamed[name]) if key in keys else (renamed[name], value)
            _raise_for_both(f"{section}{name}", by_old_name, by_new_name)
        renamed[name] = value
    return renamed


def _raise_for_both(new: str, by_old_name: Any, by_new_name: Any) -> NoReturn:
    old = next(old for old, current in RENAMED_KEYS.items() if current == new)
    raise UserError(new, f"{by_new_name!r} contradicts {old} {by_old_name!r}, its former name", f"leave {old} out")


@cache
def _notice(text: str) -> None:
    """Log a text once in a process, however many layers and copies of a recipe have the old name."""
    log.warning(text)
