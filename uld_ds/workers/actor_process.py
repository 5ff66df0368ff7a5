"""What the process of an actor does about its log and its errors. The standard library alone: see ``rollout_actor``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uld_ds.errors import one_line

log = logging.getLogger(__name__)


def log_to(file: str | None) -> None:
    """Write the log of this process to a file; None leaves it as it is."""
    if file is None:
        return
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """Log an error, and raise it as one whose class every Python knows, with its own class in the text."""
    try:
        yield
    except Exception as error:
        log.exception("%s", what)
        raise RuntimeError(f"{what} ({type(error).__name__}: {one_line(error, None)})") from None
