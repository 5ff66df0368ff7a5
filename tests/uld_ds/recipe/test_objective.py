"""What a recipe may ask of the objective, and what is said where its keys contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.recipe_trees import refused


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"objective__ce": 0.0, "objective__uld": 0},
            "objective: objective.ce, objective.uld, objective.likelihood, objective.classical, objective.hybrid, "
            "objective.projection and objective.completion are all 0: nothing to learn",
        ),
        (
            {"objective": {"projection_divergence": "reverse_kl"}},
            "recipe: objective.projection_divergence 'reverse_kl' has no effect with objective.projection 0",
        ),
        (
            {"objective": {"projection_rows": "one_to_one", "hybrid": 1.0}},
            "recipe: objective.projection_rows 'one_to_one' has no effect with objective.projection 0",
        ),
        (
            {"objective": {"projection": 1.0, "projection_student_ids": 8}},
            "recipe: objective.projection_student_ids 8 has no effect with objective.projection_pick 'teacher': set it "
            "to 'student'",
        ),
        (
            {"objective": {"projection": 1.0, "projection_pick": "student", "top_ids": 16}},
            "recipe: objective.projection_student_ids 16 picks nothing out of objective.top_ids 16: make it smaller",
        ),
        (
            {"objective": {"likelihood": 1.0, "skip_whitespace_rows": True}},
            "recipe: objective.skip_whitespace_rows has no effect without a weight for one of hybrid, projection, "
            "completion",
        ),
        (
            {"objective": {"completion": 1.0, "merge": "chain"}},
            "objective: objective.merge 'chain' has no meaning for objective.completion, which compares both models "
            "where a segment begins; take merge 'first'",
        ),
        (
            {"objective": {"projection": 1.0, "merge": "chain"}},
            "objective: objective.merge 'chain' has no meaning for objective.projection, which compares both models "
            "where a segment begins; take merge 'first'",
        ),
        (
            {"objective": {"hybrid": 1.0, "alignment": "positional"}},
            "objective: objective.hybrid needs alignment 'segments': positional pairs follow different text",
        ),
        (
            {"objective": {"merge": "chain", "alignment": "positional"}},
            "objective: objective.merge 'chain' needs alignment 'segments': positional pairs are single tokens",
        ),
        (
            {"objective": {"classical": 1.0, "merge": "chain"}},
            "objective: objective.merge 'chain' has no meaning for objective.classical: with one tokenizer on both "
            "sides a segment is one token; take merge 'first'",
        ),
        (
            {"objective": {"likelihood": 1.0, "alignment": "positional"}},
            "objective: objective.likelihood needs alignment 'segments': positional pairs are of different bytes",
        ),
        (
            {"objective__skip_teacher_end": True},
            "objective: objective.skip_student_end and skip_teacher_end need alignment 'positional'",
        ),
    ],
)
def test_keys_that_do_not_fit_each_other_are_both_named(changes: dict[str, Any], expected: str) -> None:
    assert refused(**changes) == f"{expected}; change one of the values named"
