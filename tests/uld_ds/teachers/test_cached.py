"""What decides whether a run may read what another one's teacher has said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.teacher_outputs import same_bits, tokens_of
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.cache import OutputCache
from uld_ds.teachers.cached import CachedTeacher, cache_identity
from uld_ds.teachers.outputs_codec import roundtrip
from uld_ds.utils.distributed import Ranks


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


def identity(recipe: Recipe, rows: str) -> str:
    return cache_identity(recipe, recipe.teacher_named(), rows)


def test_a_memory_without_top_k_tokens_serves_no_run_that_needs_them(tmp_path: Path) -> None:
    plain, some, more = (
        identity(recipe(**o), "d") for o in ({}, {"classical": 1.0, "top_ids": 32}, {"classical": 1.0})
    )
    assert len({plain, some, more}) == 3
    # What an objective does not look at is no part of it.
    assert identity(recipe(uld=0.3, top_ids=9), "d") == plain
    assert identity(recipe(classical=0.2, top_ids=32), "d") == some
    assert identity(recipe(), "e") != plain
    OutputCache(tmp_path, plain, rank=0).append(0, {3: tokens_of(2, 1)})
    with pytest.raises(UserError, match="is of another teacher, data or template"):
        OutputCache(tmp_path, some, rank=0)


def test_what_an_engine_is_decides_what_is_cached() -> None:
    server = {"engine": "vLLM", "version": "1", "model": "m", "top": 64, "precision": None}
    made = recipe()
    plain = cache_identity(made, made.teacher_named(), "d")
    changes: list[dict[str, Any]] = [{}, {"version": "2"}, {"model": "n"}, {"top": 32}, {"engine": "SGLang"}]
    changes.append({"precision": "fp8"})
    found = {cache_identity(made, made.teacher_named(), "d", server | change) for change in changes}
    assert len(found | {plain}) == 7
    assert plain == identity(made, "d")


def test_top_k_tokens_are_cached(tmp_path: Path) -> None:
    memory = OutputCache(tmp_path, "a", rank=0)
    said = {3: tokens_of(5, 1, top_ids=16), 0: tokens_of(2, 2, top_ids=16)}
    kept = memory.append(0, said)
    memory.close()
    for example, back in zip((0, 3), OutputCache(tmp_path, "a", rank=1).read([0, 3]), strict=True):
        assert same_bits(back, roundtrip(said[example]))
        assert same_bits(back, kept[example])


class Counted:
    """An online teacher as the cache calls it, whose outputs tell how it was asked."""

    tokens_run = bytes_gathered = 0

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.is_closed = False

    def answers(self, examples: Sequence[int], step: int) -> list[TeacherTokens]:
        self.asked.append(list(examples))
        return [tokens_of(2, 10 * len(self.asked) + example) for example in examples]

    def close(self) -> None:
        self.is_closed = True


def test_own_answers_are_asked_about_each_time_apart_from_given_ones(tmp_path: Path) -> None:
    online: Any = Counted()
    cache = OutputCache(tmp_path, "a", rank=0)
    ranks, cpu = Ranks(0, 1), torch.device("cpu")
    teacher = CachedTeacher(cache, online, num_examples=3, ranks=ranks, device=cpu, keeps_teacher=True)
    first = teacher.answers([0, 5, 1, 4], 0)
    assert online.asked == [[0, 1], [5, 4]]
    assert len(cache) == 2  # own answers are numbered anew in each round
    second = teacher.answers([1, 5, 2, 0], 1)
    assert online.asked[2:] == [[2], [5]]
    assert same_bits(second[0], first[2])
    assert same_bits(second[3], first[0])
    # What is not cached has been through the codec, too: one kind of outputs in a micro-batch.
    assert same_bits(first[1], roundtrip(tokens_of(2, 25)))
    assert same_bits(second[1], roundtrip(tokens_of(2, 45)))
    # All given examples are cached by now, and the next round needs the teacher.
    assert teacher.is_loaded
    assert not online.is_closed
