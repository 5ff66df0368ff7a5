"""What a student comes from, as plain values that identify it: teacher, student base, tokenizers."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from uld_ds.places import cache_dir, file_digest
from uld_ds.recipe import ModelSettings, Recipe
from uld_ds.recipe_models import FULL_COMMIT, NO_CODE, code_options
from uld_ds.teachers.store import SpectrumStore
from uld_ds.teachers.store_files import StoreFiles
from uld_ds.teachers.store_manifest import MANIFEST
from uld_ds.tokenizer_files import load_tokenizer, tokenizer_digest

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_AT_A_TIME = 8


def teacher_facts(recipe: Recipe, place: str) -> dict[str, Any]:
    """Whose words a student learns from.

    Args:
        recipe: the run's.
        place: where an online teacher was found: a directory or hub id.

    Returns:
        ``teacher``, ``teacher_revision``, ``teacher_digest`` and ``teacher_tokenizer_digest``; of a stored teacher
        also ``teacher_store`` and ``teacher_store_digest``.
    """
    settings = recipe.teacher
    if settings.source == "online":
        code = code_options(settings)
        revision, digest = model_identity(place, settings.revision)
        tokenizer = load_tokenizer(place, settings.revision, "teacher.model", code=code)
        return {
            "teacher": named(settings),
            "teacher_revision": revision,
            "teacher_digest": digest,
            "teacher_tokenizer_digest": tokenizer_digest(tokenizer),
        }
    assert settings.path is not None
    manifest = SpectrumStore.open(settings.path, key="teacher.path").manifest
    said = StoreFiles(settings.path, key="teacher.path").read(MANIFEST)
    assert said is not None
    return {
        "teacher": manifest.teacher,
        "teacher_revision": manifest.revision,
        # The model itself need not be at hand: what it said is what counts, and the manifest has its digests.
        "teacher_digest": f"store:{hashlib.sha256(said).hexdigest()}",
        "teacher_tokenizer_digest": manifest.tokenizer_digest,
        "teacher_store": settings.path,
        "teacher_store_digest": hashlib.sha256(said).hexdigest(),
    }


def student_base(recipe: Recipe) -> str:
    """What the student was before: the name of a model, or the kind of a new one."""
    settings = recipe.student
    return named(settings) if settings.from_config is None else f"from_config:{settings.from_config['model_type']}"


def named(settings: ModelSettings) -> str:
    """A model as the recipe names it, with its file where it is one of several."""
    return f"{settings.model}/{settings.gguf_file}" if settings.gguf_file else str(settings.model)


def model_identity(place: str, revision: str | None) -> tuple[str | None, str]:
    """Revision and digest of a model.

    Of a hub id, the commit, which is both. Of a directory, a sha256 over its configuration and weights; files are
    read once and remembered by name, size and time of change.
    """
    folder = Path(place)
    if folder.is_dir():
        return revision, f"sha256:{weights_digest(folder)}"
    if FULL_COMMIT.fullmatch(revision or ""):
        return revision, f"commit:{revision}"  # the configuration of a model with code of its own does not say it
    commit = getattr(AutoConfig.from_pretrained(place, revision=revision, **NO_CODE), "_commit_hash", None)
    return commit or revision, f"commit:{commit}"


def weights_digest(folder: Path) -> str:
    """sha256 over the names and contents of the configuration and the weights in a directory."""
    files = sorted({file for pattern in ("config.json", *WEIGHTS) for file in folder.glob(pattern)})
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        digests = pool.map(_remembered_digest, files)
    lines = (f"{file.name}:{digest}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _remembered_digest(file: Path) -> str:
    file = file.resolve()
    stat = file.stat()
    key = hashlib.sha256(json.dumps([str(file), stat.st_size, stat.st_mtime_ns]).encode()).hexdigest()
    note = cache_dir() / "digests" / key
    if note.is_file():
        return note.read_text()
    digest = file_digest(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    aside = note.with_name(f".{key}-{digest[:8]}")
    aside.write_text(digest)
    aside.rename(note)
    return digest
