"""A small recipe as a tree, with changes, and what is said of one that is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from uld_ds.errors import UserError
from uld_ds.recipe import parse_recipe

TREE: dict[str, Any] = {
    "run": {"name": "a"},
    "teacher": {"model": "org/teacher"},
    "student": {"model": "org/student"},
    "data": {"train": {"source": "files", "path": "d.jsonl"}},
    "training": {"steps": 3},
}


def tree_with(**changes: Any) -> dict[str, Any]:
    """TREE with dotted keys (``__`` for the dot) set; None removes."""
    tree = copy.deepcopy(TREE)
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        section = tree
        for part in path:
            section = section.setdefault(part, {})
        if value is None:
            del section[last]
        else:
            section[last] = value
    return tree


def message(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(**changes: Any) -> str:
    return message(parse_recipe, tree_with(**changes))
