"""Where files are found and kept: installed packages, the cache. No heavy imports."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def in_home(place: str | Path) -> Path:
    """``place`` with ``~`` as a home folder; ``~name`` of nobody stays as it is written, a path that leads nowhere."""
    return Path(os.path.expanduser(place))  # noqa: PTH111 (pathlib's raises RuntimeError for nobody)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(file: Path, text: str) -> None:
    """Writes a file that is never seen half written."""
    aside = file.with_name(file.name + ".tmp")
    try:
        aside.write_text(text)
        aside.rename(file)
    finally:
        aside.unlink(missing_ok=True)
