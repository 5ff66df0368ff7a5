"""Failures that a restart of the workers would meet again: noted once in the run's folder, instead of retried."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uld_ds.errors import FinalError
from uld_ds.utils.files import write_whole

log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def noting_fatal_errors(stopped_file: Path) -> Iterator[None]:
    """Note those of its body's failures that are final, and let all of them pass on."""
    try:
        yield
    except (FinalError, OSError) as error:
        note_if_final(stopped_file, error)
        raise


def note_if_final(stopped_file: Path, error: BaseException) -> None:
    """Write down why the run stops, if no restart can help; only the first rank to do so is heard.

    Args:
        stopped_file: the run's ``stopped.txt``.
        error: the failure; final are a FinalError and a full disk.
    """
    text = str(error) if isinstance(error, FinalError) else _of_full_disk(error, stopped_file.parent)
    if text is None:
        return
    log.error("%s", text)
    try:
        # Not synchronized: whoever starts this run again asks anew.
        write_whole(stopped_file, text, only_new=True)
    except OSError as problem:
        # Said already, or there is no room even for this: Ray then tries again, as for any other failure.
        log.info("%s is not written: %s", stopped_file, problem)


def _of_full_disk(error: BaseException, run_dir: Path) -> str | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return (
                f"no space is left for {run_dir} ({cause.strerror}): the last checkpoint is whole; free some space or "
                "move run.storage, and run the same command again"
            )
        cause = cause.__cause__
    return None
