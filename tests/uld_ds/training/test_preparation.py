"""What a recipe's models must be for it, which is known before anything heavy begins."""

from __future__ import annotations

from typing import Any, cast

import pytest
from transformers import LlamaConfig, T5Config

from tests.helpers.recipe_trees import message, tree_with
from uld_ds.data.sides import Side
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.teachers.stored_side import StoredSide
from uld_ds.training.preparation import check_identities, check_rollouts, steps_of_run

DECODER, WITH_ENCODER = LlamaConfig(), T5Config()
ONLINE = cast("Side", None)


def recipe_with(**changes: Any) -> Recipe:
    return parse_recipe(tree_with(data__eval={"source": "files", "path": "e.jsonl"}, **changes))


def test_a_student_with_an_encoder_has_no_rollouts() -> None:
    assert message(check_rollouts, recipe_with(rollouts={}), WITH_ENCODER) == (
        "rollouts: the student is a t5 with an encoder, and own answers are sampled from decoders alone; leave out "
        "rollouts, or train a decoder-only student"
    )
    check_rollouts(recipe_with(rollouts={}), DECODER)
    check_rollouts(recipe_with(), WITH_ENCODER)


def test_terms_of_own_answers_need_what_terms_of_given_ones_need() -> None:
    of_own = recipe_with(rollouts={"objective": {"classical": 0.5}})
    assert message(check_identities, of_own, of_own.teacher_named(), ONLINE, shared=False).startswith(
        "rollouts.objective.classical: 0.5 needs one tokenizer on both sides, but teacher and student have two; set it "
        "to 0 and give rollouts.objective.uld or"
    )
    of_given = recipe_with(objective={"classical": 0.7}, rollouts={"objective": {"classical": 0.9}})
    assert message(check_identities, of_given, of_given.teacher_named(), ONLINE, shared=False).startswith(
        "objective.classical: 0.7 needs one"
    )
    for recipe in (of_own, of_given):
        check_identities(recipe, recipe.teacher_named(), ONLINE, shared=True)


@pytest.mark.parametrize(
    ("own", "shared", "is_told"),
    [({"projection": 1.0}, False, True), ({"projection": 1.0}, True, False), ({"likelihood": 0.5}, False, False)],
)
def test_own_answers_that_nothing_judges_whole_are_told_of(
    own: dict[str, float], shared: bool, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_with(rollouts={"objective": own})
    check_identities(recipe, recipe.teacher_named(), ONLINE, shared=shared)
    told = [text for text in caplog.messages if text.startswith("rollouts.objective has no likelihood")]
    assert len(told) == is_told


def test_terms_that_look_at_what_stored_ids_spell_need_the_models_name() -> None:
    stored = object.__new__(StoredSide)
    stored.tokenizer_digest = "of the store"
    recipe = recipe_with(
        teacher={"source": "stored", "path": "a-store"}, objective={"projection": 0.3, "completion": 1}
    )
    assert message(check_identities, recipe, recipe.teacher_named(), stored, shared=False) == (
        "teacher.model: is missing: its tokenizer says what stored ids spell, which objective.projection and "
        "objective.completion look at; name the model whose outputs are stored, or set those weights to 0"
    )
    without = recipe_with(teacher={"source": "stored", "path": "a-store"})
    check_identities(without, without.teacher_named(), stored, shared=False)


def test_epochs_count_passes_over_given_answers_or_else_over_prompts() -> None:
    def steps(share: float, samples: int = 1, **training: Any) -> int:
        recipe = recipe_with(
            rollouts={"share": share, "samples_per_prompt": samples}, training={"batch_size": 8} | training
        )
        return steps_of_run(recipe, num_data=100, num_prompts=20)

    # Six given and two own answers a step: a hundred given ones take 17 steps.
    assert steps(0.25, epochs=1) == 17
    assert steps(0.25, epochs=0.5) == 9
    assert steps(1.0, epochs=1) == 3  # 20 prompts, eight a step
    assert steps(1.0, samples=4, epochs=1) == 10
    assert steps(1.0, steps=7) == 7
    assert steps_of_run(recipe_with(training={"batch_size": 8, "epochs": 1}), num_data=100) == 13
