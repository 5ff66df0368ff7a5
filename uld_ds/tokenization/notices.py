"""What is to be said of a tokenizer whenever it is loaded, and once in a process."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

_FILE = "uld_ds_notice.txt"
_kept: list[str] = []


def leave_notice(folder: Path, text: str) -> None:
    """Leave one line in a folder with a tokenizer, for those who load it."""
    (folder / _FILE).write_text(text + "\n", encoding="utf-8")


def say_notice(folder: Path) -> None:
    """Log the line that was left in a folder, if there is one."""
    file = folder / _FILE
    if file.is_file():
        say(file.read_text(encoding="utf-8").strip())


@cache
def say(text: str) -> None:
    """Log a warning once in a process, however often and by whom the tokenizer is loaded.

    Where warnings are turned off it is kept for ``say_what_was_kept``.
    """
    if log.isEnabledFor(logging.WARNING):
        log.warning("%s", text)
    else:
        _kept.append(text)


def say_what_was_kept() -> None:
    """Log what was to be said while warnings were turned off, as they are for libraries' sake."""
    while _kept:
        log.warning("%s", _kept.pop(0))
