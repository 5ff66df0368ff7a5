"""When a served teacher's few tokens are too few for the ULD distance, that is said, once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.recipe_trees import tree_with
from uld_ds.checkpointing.state import TrainState
from uld_ds.recipe import parse_recipe
from uld_ds.training.unknown_tail import UnknownTail

SERVED = {"teacher__source": "served", "teacher__server": {"url": "http://x", "api": "vllm", "top": 20}}


def said(distances: list[tuple[float, float]], **changes: Any) -> list[str]:
    warnings: list[str] = []
    callback = UnknownTail(parse_recipe(tree_with(**changes)), warnings.append)
    for distance, bound in distances:
        callback.on_step(TrainState(), {"train/uld": distance, "train/uld_error_bound": bound})
    return warnings


def test_a_bound_above_a_twentieth_is_said_once() -> None:
    (text,) = said([(0.8, 0.04), (0.8, 0.16), (0.8, 0.4)], **SERVED)
    assert text.startswith(
        "teacher.server.top 20 leaves the ULD distance 0.8 uncertain by up to 0.16 (20%): for objective"
    )
    assert "objective.uld 1.5 raise top" in text


@pytest.mark.parametrize(
    "changes",
    [{}, SERVED | {"objective__uld": 0.0, "objective__likelihood": 1.0}],
    ids=["another source", "not weighed"],
)
def test_where_there_is_nothing_to_say(changes: dict[str, Any]) -> None:
    assert said([(0.8, 0.4)], **changes) == []
    assert said([(0.8, float("nan"))], **SERVED) == []
