"""Checks and errors of files that a person wants written."""

from __future__ import annotations

from pathlib import Path

from uld_ds.errors import UserError


def check_target(file: Path, key: str) -> None:
    """Check, before any work is done, that ``file`` can be written.

    Raises:
        UserError: it is a folder, or is to lie in none.
    """
    try:
        is_folder, has_folder = file.is_dir(), file.parent.is_dir()
    except OSError as error:
        raise cannot_write(file, key, error) from error
    if is_folder:
        raise UserError(key, f"{str(file)!r} is a folder", "name a file in it")
    if not has_folder:
        raise UserError(key, f"no folder {str(file.parent)!r}", "make it, or choose another file")


def cannot_write(file: Path, key: str, error: OSError) -> UserError:
    """Make the error for a file that the system refuses."""
    return UserError(key, f"cannot write {str(file)!r} ({error.strerror})", "choose another file")
