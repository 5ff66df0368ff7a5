"""Failures that a restart of the workers would meet again: noted once in the run's folder, instead of retried."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

import ray.exceptions
from huggingface_hub.errors import OfflineModeIsEnabled

from uld_ds.errors import FinalError, UserError, one_line
from uld_ds.utils.files import write_whole

log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# What Python raises for something that is not as the code takes it to be: with the same files and the same steps it is
# raised again. RuntimeError is none of them: it is also how a process group tells that another worker is lost.
_SAME_AGAIN = (
    UserError,
    FinalError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
# Storage and network, among them HTTP's own ValueErrors, files that another process is writing, and other workers.
_PASSING = (OSError, JSONDecodeError, UnicodeError, ray.exceptions.RayError)
# What storage says of something that is not there or not to be had, next time as well.
_LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM}


@contextmanager
def noting_fatal_errors(stopped_file: Path) -> Iterator[None]:
    """Note those of its body's failures that are final, and let all of them pass on."""
    try:
        yield
    except Exception as error:
        note_if_final(stopped_file, error)
        raise


def note_if_final(stopped_file: Path, error: BaseException) -> None:
    """Write down why the run stops, if no restart can help; only the first rank to do so is heard.

    Args:
        stopped_file: the run's ``stopped.txt``.
        error: the failure; final are a full disk and what is sure to be raised again, not what a worker raises that has
            lost another one, a connection or its storage.
    """
    text = _of_full_disk(error, stopped_file.parent) or _of_same_again(error)
    if text is None:
        return
    log.error("%s", text)
    try:
        # Not synchronized: whoever starts this run again asks anew.
        write_whole(stopped_file, text, only_new=True)
    except OSError as problem:
        # Said already, or there is no room even for this: Ray then tries again, as for any other failure.
        log.info("%s is not written: %s", stopped_file, problem)


def _of_same_again(error: BaseException) -> str | None:
    if isinstance(error, _PASSING) or not isinstance(error, _SAME_AGAIN):
        return None
    if isinstance(error, UserError) and _is_of_storage_or_network(error):
        return None
    if isinstance(error, UserError | FinalError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f", in {Path(frame.filename).name}, line {frame.lineno}" for frame in place)
    kind = type(error).__name__
    return f"{kind}: {one_line(error)}{where}: it would be the same after a restart (the whole of it is in logs)"


def _is_of_storage_or_network(error: BaseException) -> bool:
    """Tell whether a mistake of the user's may be none: it was concluded from storage or a hub that did not answer."""
    cause: BaseException | None = error
    while cause is not None:
        # transformers' own OSErrors have no number: of a hub that did not answer they are raised while handling one.
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, ConnectionError | TimeoutError):
            return True
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno not in _LASTING:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


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
