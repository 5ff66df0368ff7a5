"""A stored teacher: the precomputed outputs of a spectrum store in place of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from uld_ds.errors import UserError
from uld_ds.recipe import NamedTeacherSettings, Recipe
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.store.files import StoreFiles
from uld_ds.teachers.store.manifest import MANIFEST
from uld_ds.teachers.store.reader import SpectrumStore

HELD_OUT = "held_out"
"""Folder, below a store, of the store of held-out examples."""


def held_out_url(url: str) -> str:
    """Return the URL of the held-out examples' store that belongs to the one at ``url``."""
    return f"{url.rstrip('/')}/{HELD_OUT}"


def held_out_store(url: str, key: str = "teacher.path") -> SpectrumStore | None:
    """Open the store of held-out examples that was built with the one at ``url``, if any.

    Args:
        url: Folder or URL of the store of training examples.
        key: Recipe key that names it, for messages.
    """
    place = held_out_url(url)
    return SpectrumStore.open(place, key=key) if StoreFiles(place, key=key).read(MANIFEST) else None


class StoredTeacher:
    """A teacher source that reads the stored outputs of prepared rows' examples.

    Args:
        store: Spectrum store, open.
        rows: Rows of prepare.py, prepared with this store's ``StoredSide``; those of this teacher. One without a digest
            is another teacher's to judge.
        key: Recipe key that names the store, for messages.

    Raises:
        UserError: the store does not hold all of the examples.
    """

    tokens_run = 0
    bytes_gathered = 0

    def __init__(self, store: SpectrumStore, rows: Dataset, key: str = "teacher.path") -> None:
        self._store = store
        self._answers = rows.select_columns(["teacher_answers"]).with_format("numpy")
        known = {digest: number for number, digest in enumerate(store.digests())}
        digests = rows["digest"]
        absent = [digest for digest in digests if digest and digest not in known]
        if absent:
            raise UserError(
                key,
                f"{len(absent)} of {len(digests)} examples are not in the store (data_digest differs)",
                "build a store of this data",
            )
        self._numbers = np.array([known.get(digest, -1) for digest in digests], dtype=np.int64)

    def answers(self, examples: Sequence[int], step: int) -> list[TeacherTokens]:
        """Read the stored teacher outputs of each example, on the CPU; no rank needs another for it."""
        stored = self._store.read(self._numbers[list(examples)].tolist())
        # Places of a stored side are those in the store, after one of a prompt that is not there.
        places = self._answers[list(examples)]["teacher_answers"]
        return [
            example.tokens[torch.from_numpy(np.asarray(place, dtype=np.int64) - 1)]
            for example, place in zip(stored, places, strict=True)
        ]


def check_store(recipe: Recipe, settings: NamedTeacherSettings, store: SpectrumStore) -> None:
    """Check what a recipe says of a stored teacher against the store's manifest.

    What a recipe does not mention is the store's to decide.

    Args:
        recipe: Recipe of the run.
        settings: The teacher among its teachers.
        store: Its store, open.

    Raises:
        UserError: a value of the recipe is not the store's (names the key, both values and the fix).
    """
    manifest, section = store.manifest, settings.key
    said = {
        "teacher": ("model", settings.model),
        "revision": ("revision", settings.revision),
        "prompt_template": ("prompt_template", settings.prompt_template),
        "system_prompt": ("system_prompt", settings.system_prompt),
        "template_arguments": ("template_arguments", settings.template_arguments),
        "max_length": ("max_length", settings.max_length),
    }
    for field, (key, value) in said.items():
        there = getattr(manifest, field)
        # No model, or no revision, is none named; no system prompt is something said.
        named = value is not None or key == "system_prompt"
        if key in settings.model_fields_set and named and value != there:
            raise _differs(settings, f"{section}.{key}", field, value, there)
    chosen = recipe.data.special_tokens
    if "special_tokens" in recipe.data.model_fields_set and chosen != manifest.special_tokens:
        raise _differs(settings, "data.special_tokens", "special_tokens", chosen, manifest.special_tokens)
    if "codec" in settings.model_fields_set:
        ours, theirs = settings.codec.model_dump(), manifest.codec.precision
        for name in settings.codec.model_fields_set:
            if ours[name] != theirs.get(name):
                field = f"codec.precision.{name}"
                raise _differs(settings, f"{section}.codec.{name}", field, ours[name], theirs.get(name))
    temperature = recipe.objective.teacher_temperature
    if temperature != manifest.temperature:
        raise _differs(settings, "objective.teacher_temperature", "temperature", temperature, manifest.temperature)
    if (needed := recipe.objective.num_top_ids) > manifest.top_ids:
        problem = f"{needed}, but the store at {settings.path} was built with store.top_ids {manifest.top_ids}"
        fewer = f"set it to {manifest.top_ids} or less, or " if manifest.top_ids else ""
        raise UserError("objective.top_ids", problem, f"{fewer}build a store with store.top_ids {needed}")


def _differs(settings: NamedTeacherSettings, key: str, field: str, value: object, there: object) -> UserError:
    problem = f"{value!r}, but the store at {settings.path} was built with {field} {there!r}"
    return UserError(key, problem, "set it to that, leave it out, or build a store with it")
