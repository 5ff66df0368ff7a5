"""Files and folders that appear whole or not at all, and paths that a user has written. No heavy imports.

What is written here is put together *aside*, under a name of its own in the same folder, and then renamed: a reader
sees the old content or the new one, a writer that is killed leaves the old one, and of two writers one wins. That is
all a crash of a process needs. A crash of the *machine* may keep the new name and lose the bytes behind it; ``sync``
waits until both are on the disk. It costs a wait for the disk, and is for what is written once and believed ever after:
identities, results, checkpoints, shards, caches that are trusted by their name. It is not for what is written anew all
the time, what can be made again, or what its reader checks.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

ASIDE = ".aside-"
"""Beginning of the names of files and folders that are not whole yet."""
# Whoever looks for all files of a kind does not find those that are not whole.
_ASIDE_END = ".part"
# The end of a name is enough to know whose it is, and no name becomes too long for a file system by it.
_SHOWN_OF_A_NAME = 32


def in_home(place: str | Path) -> Path:
    """Expand a leading ``~`` or ``~name`` to a home folder; ``~name`` of nobody stays, a path that leads nowhere."""
    return Path(os.path.expanduser(place))  # noqa: PTH111 (pathlib's raises RuntimeError for nobody)


def file_digest(path: Path) -> str:
    """Compute the sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(file: Path, content: str | bytes, *, sync: bool = False, only_new: bool = False) -> None:
    """Write a file that is never seen half written.

    Args:
        file: the file, replaced if it is there.
        content: bytes, or text that is written as UTF-8.
        sync: return when content and name are on the disk.
        only_new: leave a file alone that is there already.

    Raises:
        FileExistsError: with ``only_new``, in all writers but the first.
        OSError: a full disk, for one; ``file`` is as it was.
    """
    with whole_file(file, sync=sync, only_new=only_new) as out:
        out.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(file: Path, *, sync: bool = False, only_new: bool = False) -> Iterator[BinaryIO]:
    """Open a file that gets its name when the body has ended well: ``write_whole`` for content in pieces."""
    aside = _aside(file)
    try:
        with aside.open("xb") as out:
            yield out
            if sync:
                out.flush()
                os.fsync(out.fileno())
        if only_new:
            os.link(aside, file)
        else:
            aside.replace(file)
        if sync:
            sync_folder(file.parent)
    except OSError as error:
        if error.filename == str(aside):
            error.filename = str(file)  # the name that a person knows
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, *, sync: bool = False, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes ``folder`` when the body has ended well.

    Args:
        folder: the folder; its parents are made.
        sync: wait, at the end, until every file in it and all names are on the disk.
        replace: put it in the place of a folder that is there. Between the two renames that this takes there is none:
            whoever is killed there has lost both.

    Raises:
        OSError: without ``replace``, ``folder`` has come to be meanwhile.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside, before = _aside(folder), _aside(folder)
    try:
        aside.mkdir()
        yield aside
        if sync:
            _sync_tree(aside)
        if replace and folder.exists():
            folder.rename(before)
        try:
            aside.rename(folder)
        except OSError:
            if before.exists():
                before.rename(folder)
            raise
        if sync:
            sync_folder(folder.parent)
    finally:
        for left in (aside, before):
            shutil.rmtree(left, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Remove what killed writers of ``target`` left aside; call it only where nobody else can be writing it now."""
    with suppress(FileNotFoundError):
        for left in target.parent.iterdir():
            if left.name.startswith(ASIDE) and left.name[len(ASIDE) :].partition("-")[2] == _shown(target):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system can say so."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _aside(target: Path) -> Path:
    # Random, not the process's number: writers on several machines share the folder.
    return target.with_name(f"{ASIDE}{secrets.token_hex(6)}-{_shown(target)}")


def _shown(target: Path) -> str:
    return f"{target.name[-_SHOWN_OF_A_NAME:]}{_ASIDE_END}"


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with (Path(place) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))
