"""When a served teacher's few tokens are too few for the ULD distance, that is said, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.recipe_trees import tree_with
from tests.helpers.stores import writer
from tests.helpers.teacher_outputs import example, identity
from uld_ds.checkpointing.state import TrainState
from uld_ds.recipe import parse_recipe
from uld_ds.teachers.store.manifest import ServedFacts
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


@pytest.mark.parametrize("told", [True, False])
def test_a_store_of_what_a_server_said_knows_no_more(told: bool, tmp_path: Path) -> None:
    served = ServedFacts(engine="vLLM", model="m", version="0.32.0", top=16, vocab_size=300)
    store = writer(tmp_path, identity(served=served if told else None))
    for index in range(store.num_shards):
        store.write_shard(index, (example(number) for number in store.examples_of_shard(index)))
    store.finish()
    warnings = said([(0.8, 0.4)], teacher__source="stored", teacher__path=str(tmp_path))
    assert len(warnings) == told
    if told:
        assert warnings[0].startswith("top 16 of the store teacher.path leaves the ULD distance 0.8 uncertain")
