"""Rollouts against the rest of a recipe: one line, with the key and a way out that works."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.recipe_trees import refused, tree_with
from uld_ds.recipe import parse_recipe

HELD_OUT = {"source": "files", "path": "e.jsonl"}


@pytest.mark.parametrize(
    ("changes", "expected", "mended"),
    [
        (
            {"teacher__source": "stored", "teacher__path": "s"},
            "teacher.source: 'stored' cannot judge what the student has yet to write: a store holds the teacher's "
            "outputs for given answers alone; set it to online or served, where the teacher runs, or leave out "
            "rollouts",
            {"teacher__source": "online"},
        ),
        (
            {"objective__alignment": "positional"},
            "objective.alignment: 'positional' pairs the n-th tokens of both sides, which follow different text where "
            "the student chose its own; set it to segments, or leave out rollouts",
            {"objective__alignment": "segments"},
        ),
        (
            {"data__eval": None},
            "data.eval: is missing: with rollouts a student makes its own training text, and only held-out examples "
            "show whether it learns from that; give held-out examples, or leave out rollouts",
            {"data__eval": HELD_OUT},
        ),
        (
            {"rollouts": {"max_new_tokens": 64}, "student__max_length": 64},
            "rollouts.max_new_tokens: 64 leaves no room for a prompt within student.max_length 64; lower it, or raise "
            "student.max_length",
            {"student__max_length": 65},
        ),
        (
            {"training__batch_size": 1},
            "rollouts.share: 0.5 of training.batch_size 1 is no whole example: own and given answers do not both fit "
            "into a batch; raise training.batch_size, or set it to 1.0 for own answers alone",
            {"rollouts": {"share": 1.0}},
        ),
        (
            {"rollouts": {"samples_per_prompt": 9, "every": 2}},
            "rollouts.samples_per_prompt: 9 is more than the 8 own answers of a round (rollouts.every 2 x 4 of each "
            "batch); set it to 8 or less, or raise rollouts.every",
            {"rollouts": {"samples_per_prompt": 8, "every": 2}},
        ),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], expected: str, mended: dict[str, Any]) -> None:
    beside = {"rollouts": {}, "data__eval": HELD_OUT}
    given = {key: value for key, value in {**beside, **changes}.items() if value is not None}
    assert refused(**given) == expected
    assert parse_recipe(tree_with(**{**beside, **changes, **mended})).rollouts is not None


def test_choices_of_a_projection_have_an_effect_on_own_answers_too() -> None:
    beside: dict[str, Any] = {"data__eval": HELD_OUT, "objective": {"projection_divergence": "reverse_kl"}}
    recipe = parse_recipe(tree_with(**beside, rollouts={"objective": {"projection": 1.0}}))
    assert (recipe.objective.projection, recipe.taught.projection) == (0.0, 1.0)
    told = refused(**beside, rollouts={"objective": {"uld": 1.0}})
    assert told.startswith("recipe: objective.projection_divergence 'reverse_kl' has no effect with")
