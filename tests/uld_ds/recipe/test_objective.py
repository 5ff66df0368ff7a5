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
            {"objective": {"likelihood_boundary": 0.1}},
            "objective: objective.likelihood_boundary 0.1 has no effect with objective.likelihood 0",
        ),
        (
            {"objective": {"likelihood": 1.0, "likelihood_boundary": 0.1, "merge": "chain"}},
            "objective: objective.merge 'chain' looks at the end of a segment, objective.likelihood_boundary at what "
            "the teacher expects where one begins; take merge 'first'",
        ),
        (
            {"objective": {"likelihood_run": 4}},
            "objective: objective.likelihood_run 4 has no effect with objective.likelihood 0",
        ),
        (
            {"objective": {"uld": 0.0, "uld_gate": 10}},
            "objective: objective.uld_gate 10 has no effect with objective.uld 0",
        ),
        (
            {"objective": {"uld": 0.0, "schedule": {"uld": {"kind": "linear", "to": 1.0}}}},
            "objective: objective.schedule.uld has no effect with objective.uld 0",
        ),
        (
            {"objective": {"ce": 0.0, "uld": 0.3, "schedule": {"uld": {"kind": "warmup", "steps": 0.5}}}},
            "objective: objective.schedule begins at 0 with every term that has a weight: leave one as it is",
        ),
        (
            {"objective": {"schedule": {name: {"kind": "linear", "to": 0.0} for name in ("ce", "uld")}}},
            "objective: objective.schedule ends at 0 with every term that has a weight: leave one as it is",
        ),
        (
            {"objective__schedule": {"uld": {"kind": "warmup", "steps": 2.5}}},
            "objective.schedule.uld: steps 2.5 is neither a share of all steps (below 1) nor a whole number of them",
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


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            {"uldd": {"kind": "warmup", "steps": 0.5}},
            "objective.schedule.uldd: 'uldd' is not known; choose 'ce', 'uld', 'likelihood', 'classical', 'hybrid' or "
            "'projection'",
        ),
        (
            {"foo": {"kind": "warmup"}},
            "objective.schedule.foo: 'foo' is not known (and 1 more); choose 'ce', 'uld', 'likelihood', 'classical', "
            "'hybrid' or 'projection'",
        ),
        (
            {"uld": {"kind": "warmup", "stepz": 0.5}},
            "objective.schedule.uld.stepz: unknown key (value 0.5) (and 1 more); did you mean "
            "objective.schedule.uld.steps?",
        ),
        (
            {"uld": {"kind": "cosine"}},
            "objective.schedule.uld.kind: 'cosine' is not known; choose one of 'warmup', 'linear'",
        ),
        (
            {"uld": {"kind": "warmup", "steps": 0}},
            "objective.schedule.uld.steps: Input should be greater than 0 (value 0); give a value of that kind",
        ),
        (
            {"uld": {"kind": "warmup", "steps": 101}},
            "objective.schedule.uld.steps: 101 is more than the 100 optimizer steps of the run; give a share of them, "
            "e.g. 0.2, or a smaller number",
        ),
    ],
)
def test_an_impossible_schedule_is_named(schedule: dict[str, Any], expected: str) -> None:
    assert refused(training__steps=100, objective__schedule=schedule) == expected
