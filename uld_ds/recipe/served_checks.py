"""Checks of a recipe's served teachers against its other keys: what an engine cannot say, what has no effect on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from uld_ds.errors import UserError
from uld_ds.recipe.models import NamedTeacherSettings, TeacherSettings
from uld_ds.recipe.schema import Recipe

# Keys about a model that runs in the workers, and what says it instead.
_OF_WORKERS = {
    "precision": "the engine's own flag decides (vLLM and SGLang: --dtype)",
    "sharding": "the engine decides how it is spread",
    "deepspeed": "the engine decides how it is spread",
    "packing": "the engine decides how it batches",
    "max_tokens_per_forward": "server.tokens_in_flight bounds what is under way",
}


def check_served_teachers(recipe: Recipe) -> None:
    """Check that the served teachers of a recipe can say what it wants to know; without any there is nothing to check.

    Raises:
        UserError: names the key that does not go with them.
    """
    for settings in recipe.teachers:
        if settings.source == "online" and settings.server is not None:
            raise UserError(
                f"{settings.key}.server",
                "has no effect with source 'online', which runs the teacher in the workers",
                f"set {settings.key}.source to served, or leave server out",
            )
        if settings.source == "served":
            _check_keys(settings)
            _check_objective(recipe, settings)


def _check_keys(settings: NamedTeacherSettings) -> None:
    for key, value in _chosen(settings):
        raise UserError(
            f"{settings.key}.{key}",
            f"{value!r} has no effect with source 'served'",
            f"leave it out: {_OF_WORKERS[key]}",
        )


def _chosen(settings: NamedTeacherSettings) -> Iterator[tuple[str, Any]]:
    for key in _OF_WORKERS:
        value = getattr(settings, key)
        # Not whether it was written: a recipe that has been through a file has every key in it.
        if value != TeacherSettings.model_fields[key].default:
            yield key, value


def _check_objective(recipe: Recipe, settings: NamedTeacherSettings) -> None:
    assert settings.server is not None
    top, key = settings.server.top, f"{settings.key}.server.top"
    temperature, needed = recipe.objective.teacher_temperature, recipe.taught.num_top_ids
    if temperature != 1:
        raise UserError(
            "objective.teacher_temperature",
            f"{temperature:g} needs every logit of the teacher, and a served one tells its {top} likeliest tokens",
            "set it to 1.0, or teacher.source to online",
        )
    if needed > top:
        raise UserError(
            key,
            f"{top} is less than the objective.top_ids {needed} that {', '.join(recipe.taught.identity_terms)} look at",
            f"raise it to {needed} (vLLM: start it with --max-logprobs {needed}), or lower objective.top_ids to {top}",
        )
