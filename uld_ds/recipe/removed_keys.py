"""Keys that a recipe once had.

A recipe that still sets one is told why it is gone. One at its former default never said anything: the recipe in an
older run's folder has every key, and still loads. Digests of runs and versions were made with these keys; they count
at that default for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from uld_ds.errors import UserError


class RemovedKey(NamedTuple):
    """What there is to know of a key that is gone."""

    default: Any
    """Its former default, as plain data: the value of every recipe now."""
    reason: str
    """Why it was removed."""


_NO_DIFFERENCE = "no difference was shown (docs/objectives.md)"
_NO_GAIN = "nothing showed that it helps (docs/objectives.md)"
REMOVED_KEYS = {
    "objective.uld_gate": RemovedKey(None, _NO_DIFFERENCE),
    "objective.schedule": RemovedKey({}, _NO_DIFFERENCE),
    "objective.likelihood_run": RemovedKey(1, _NO_GAIN),
    "objective.likelihood_boundary": RemovedKey(0.0, _NO_GAIN),
}
"""Removed keys, each ``section.key``."""


def without_removed_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a recipe without removed keys that have their former defaults.

    Args:
        tree: sections by name, as plain values.

    Raises:
        UserError: a removed key has another value.
    """
    kept = dict(tree)
    for dotted, removed in REMOVED_KEYS.items():
        name, _, key = dotted.partition(".")
        section = kept.get(name)
        if not isinstance(section, Mapping) or key not in section:
            continue
        if section[key] != removed.default:
            raise UserError(dotted, f"was removed: {removed.reason}", "delete the key")
        kept[name] = {other: value for other, value in section.items() if other != key}
    return kept


def with_removed_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a whole recipe with removed keys at their former defaults."""
    whole = dict(tree)
    for dotted, removed in REMOVED_KEYS.items():
        name, _, key = dotted.partition(".")
        whole[name] = {**whole[name], key: removed.default}
    return whole
