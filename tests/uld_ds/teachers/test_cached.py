"""What decides whether a run may read what another one's teacher has said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.teacher_outputs import same_bits, tokens_of
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.teachers.cache import OutputCache
from uld_ds.teachers.cached import cache_identity
from uld_ds.teachers.outputs_codec import roundtrip


def recipe(**objective: Any) -> Recipe:
    return parse_recipe(
        {
            "run": {"name": "x"},
            "teacher": {"model": "t"},
            "student": {"model": "s"},
            "data": {"train": {"source": "files", "path": "x"}},
            "objective": objective,
            "training": {"steps": 1},
        }
    )


def test_a_memory_without_top_k_tokens_serves_no_run_that_needs_them(tmp_path: Path) -> None:
    plain, some, more = (
        cache_identity(recipe(**o), "d") for o in ({}, {"classical": 1.0, "top_ids": 32}, {"classical": 1.0})
    )
    assert len({plain, some, more}) == 3
    # What an objective does not look at is no part of it.
    assert cache_identity(recipe(uld=0.3, top_ids=9), "d") == plain
    assert cache_identity(recipe(classical=0.2, top_ids=32), "d") == some
    assert cache_identity(recipe(), "e") != plain
    OutputCache(tmp_path, plain, rank=0).append(0, {3: tokens_of(2, 1)})
    with pytest.raises(UserError, match="is of another teacher, data or template"):
        OutputCache(tmp_path, some, rank=0)


def test_top_k_tokens_are_cached(tmp_path: Path) -> None:
    memory = OutputCache(tmp_path, "a", rank=0)
    said = {3: tokens_of(5, 1, top_ids=16), 0: tokens_of(2, 2, top_ids=16)}
    kept = memory.append(0, said)
    memory.close()
    for example, back in zip((0, 3), OutputCache(tmp_path, "a", rank=1).read([0, 3]), strict=True):
        assert same_bits(back, roundtrip(said[example]))
        assert same_bits(back, kept[example])
