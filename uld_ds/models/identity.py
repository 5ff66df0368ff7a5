"""The identity of a model: a hub's commit, or a digest of its weights."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe.models import FULL_COMMIT
from uld_ds.utils.cache import cache_dir
from uld_ds.utils.files import file_digest, write_whole

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_AT_A_TIME = 8


def model_identity(model: Pretrained) -> tuple[str | None, str]:
    """Return the revision and the digest of a model.

    Of a hub id, the commit, which is both. Of a directory, a sha256 over its configuration and weights; files are
    read once, and their digests cached by name, size and time of change.
    """
    folder, revision = Path(model.place), model.revision
    if folder.is_dir():
        return revision, f"sha256:{weights_digest(folder)}"
    if FULL_COMMIT.fullmatch(revision or ""):
        return revision, f"commit:{revision}"  # the configuration of a model with code of its own does not say it
    # What the hub's cache calls the folder that the configuration is read from.
    commit = extract_commit_hash(cached_file(model.place, "config.json", revision=revision), None)
    return commit or revision, f"commit:{commit}"


def weights_digest(folder: Path) -> str:
    """Compute the sha256 over the names and contents of the configuration and the weights in a directory."""
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
        return note.read_text(encoding="utf-8")
    digest = file_digest(file)
    with suppress(OSError):  # a cache that cannot be written costs time alone
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, digest, sync=True)  # believed without a second look
    return digest
