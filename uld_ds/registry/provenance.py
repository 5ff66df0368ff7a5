"""The provenance of a student, as plain values that identify its teacher and its base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from uld_ds.models.identity import model_identity
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import ModelSettings, NamedTeacherSettings, Recipe
from uld_ds.teachers.store.files import StoreFiles
from uld_ds.teachers.store.manifest import MANIFEST
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.tokenization.loading import tokenizer_digest


def teacher_facts(
    recipe: Recipe, places: Mapping[str, str], servers: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Identify the teachers that a student learns from, or the stores of their outputs.

    Args:
        recipe: the run's recipe.
        places: where each online or served teacher was found, by its name: a directory or hub id.
        servers: facts of the engine of each served teacher, by its name: see ``ServerFacts``.

    Returns:
        ``teacher``, ``teacher_revision``, ``teacher_digest`` and ``teacher_tokenizer_digest``; of a stored teacher
        also ``teacher_store`` and ``teacher_store_digest``, of a served one ``teacher_server``. Of several, ``teacher``
        names all, ``teacher_digest`` is of all, and ``teachers`` has, as JSON, these facts and the weight of each by
        its name.
    """
    facts = {
        settings.name: _facts_of(settings, places[settings.name], (servers or {}).get(settings.name))
        for settings in recipe.teachers
    }
    if len(facts) == 1:
        return next(iter(facts.values()))
    weights = {settings.name: settings.weight for settings in recipe.teachers}
    known = {name: {key: value for key, value in own.items() if value is not None} for name, own in facts.items()}
    return {
        "teacher": ", ".join(str(own["teacher"]) for own in facts.values()),
        "teacher_digest": hashlib.sha256(
            "\n".join(str(own["teacher_digest"]) for own in facts.values()).encode()
        ).hexdigest(),
        "teachers": json.dumps({name: {"weight": weights[name], **own} for name, own in known.items()}),
    }


def _facts_of(settings: NamedTeacherSettings, place: str, server: Mapping[str, Any] | None) -> dict[str, Any]:
    if server is not None:
        # The weights are the server's; what is known of them is what it says, and its name of them.
        facts = json.dumps(dict(server), sort_keys=True)
        return {
            "teacher": named(settings),
            "teacher_revision": settings.revision,
            "teacher_digest": f"served:{hashlib.sha256(facts.encode()).hexdigest()}",
            "teacher_tokenizer_digest": tokenizer_digest(Pretrained.at(place, settings, settings.key).tokenizer()),
            "teacher_server": facts,
        }
    if settings.source == "online":
        teacher = Pretrained.at(place, settings, settings.key)
        revision, digest = model_identity(teacher)
        return {
            "teacher": named(settings),
            "teacher_revision": revision,
            "teacher_digest": digest,
            "teacher_tokenizer_digest": tokenizer_digest(teacher.tokenizer()),
        }
    assert settings.path is not None
    manifest = SpectrumStore.open(settings.path, key=f"{settings.key}.path").manifest
    said = StoreFiles(settings.path, key=f"{settings.key}.path").read(MANIFEST)
    assert said is not None
    return {
        "teacher": manifest.teacher,
        "teacher_revision": manifest.revision,
        # The model itself need not be at hand: its outputs are what counts, and the manifest has their digests.
        "teacher_digest": f"store:{hashlib.sha256(said).hexdigest()}",
        "teacher_tokenizer_digest": manifest.tokenizer_digest,
        "teacher_store": settings.path,
        "teacher_store_digest": hashlib.sha256(said).hexdigest(),
    }


def student_base(recipe: Recipe) -> str:
    """Name the model that the student was before training, or the kind of a new one."""
    settings = recipe.student
    return named(settings) if settings.from_config is None else f"from_config:{settings.from_config['model_type']}"


def named(settings: ModelSettings) -> str:
    """Write a model's name as the recipe has it, with its file where it is one of several."""
    return f"{settings.model}/{settings.gguf_file}" if settings.gguf_file else str(settings.model)
