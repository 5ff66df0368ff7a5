"""Checks of a recipe's rollouts against its other sections: what no run could do, and what would have no effect."""

from __future__ import annotations

from uld_ds.errors import UserError
from uld_ds.recipe.rollouts import RolloutSettings
from uld_ds.recipe.schema import Recipe


def check_rollout_settings(recipe: Recipe) -> None:
    """Check that a recipe's rollouts go with the rest of it; without rollouts there is nothing to check.

    Raises:
        UserError: names the key that does not go with them.
    """
    if recipe.rollouts is None:
        return
    _check_judges(recipe)
    _check_lengths(recipe, recipe.rollouts)
    _check_shares(recipe, recipe.rollouts)


def _check_judges(recipe: Recipe) -> None:
    """Check that somebody judges own answers, and that their effect is seen."""
    stored = [teacher for teacher in recipe.teachers if teacher.source == "stored"]
    if stored:
        raise UserError(
            f"{stored[0].key}.source",
            "'stored' cannot judge what the student has yet to write: a store holds the teacher's outputs for given "
            "answers alone",
            "set it to online or served, where the teacher runs, or leave out rollouts",
        )
    if recipe.objective.alignment != "segments":
        raise UserError(
            "objective.alignment",
            f"{recipe.objective.alignment!r} pairs the n-th tokens of both sides, which follow different text where "
            "the student chose its own",
            "set it to segments, or leave out rollouts",
        )
    if recipe.data.eval is None:
        raise UserError(
            "data.eval",
            "is missing: with rollouts a student makes its own training text, and only held-out examples show "
            "whether it learns from that",
            "give held-out examples, or leave out rollouts",
        )


def _check_lengths(recipe: Recipe, rollouts: RolloutSettings) -> None:
    longest = recipe.student.max_length
    if rollouts.max_new_tokens >= longest:
        raise UserError(
            "rollouts.max_new_tokens",
            f"{rollouts.max_new_tokens} leaves no room for a prompt within student.max_length {longest}",
            "lower it, or raise student.max_length",
        )


def _check_shares(recipe: Recipe, rollouts: RolloutSettings) -> None:
    """Check that numbers of answers come out whole, and that a round has room for what is sampled of a prompt."""
    batch, own = recipe.training.batch_size, recipe.own_examples
    if own == batch and rollouts.share < 1:
        raise UserError(
            "rollouts.share",
            f"{rollouts.share:g} of training.batch_size {batch} is no whole example: own and given answers do not "
            "both fit into a batch",
            "raise training.batch_size, or set it to 1.0 for own answers alone",
        )
    slots = own * rollouts.every
    if rollouts.samples_per_prompt > slots:
        raise UserError(
            "rollouts.samples_per_prompt",
            f"{rollouts.samples_per_prompt} is more than the {slots} own answers of a round (rollouts.every "
            f"{rollouts.every} x {own} of each batch)",
            f"set it to {slots} or less, or raise rollouts.every",
        )
