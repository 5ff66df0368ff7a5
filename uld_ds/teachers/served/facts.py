"""What is known of the engine that a served teacher runs in, and what a run remembers of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uld_ds.errors import UserError
from uld_ds.recipe import NamedTeacherSettings
from uld_ds.utils.files import write_whole

log = logging.getLogger(__name__)

KEPT = "server.json"
"""Name of the file, beside a teacher's cached outputs, of the engine that they come from."""


class UnreachableError(UserError):
    """A server that does not answer at all."""


@dataclass(frozen=True)
class ServerFacts:
    """All of an engine that decides what it says, as far as its server tells."""

    engine: str
    """What people call the engine."""
    version: str | None
    model: str
    """The server's name of the model."""
    top: int
    """Likeliest tokens that are asked for."""
    vocab_size: int
    """Ids of the model, over which its distributions are."""
    precision: str | None = None
    """Type, or quantization, of the weights; None where the server does not tell."""

    def to_json(self) -> dict[str, Any]:
        """Convert the facts to plain data."""
        return asdict(self)

    @property
    def said(self) -> str:
        """The facts in a few words."""
        precision = "" if self.precision is None else f" in {self.precision}"
        return f"{self.model} by {self.engine} {self.version or '(of an unknown version)'}{precision}, top {self.top}"


def remembered(
    settings: NamedTeacherSettings,
    examine: Callable[[float], ServerFacts],
    folder: Path | None,
    *,
    wait_seconds: float = 0.0,
) -> ServerFacts:
    """Ask a server who it is, and compare that with what a run began with.

    A run whose server is gone goes on: all that it still needs may be cached.

    Args:
        settings: the served teacher.
        examine: asks the server, and waits for so many seconds until it is there.
        folder: of the teacher's cached outputs; None where nothing is kept.
        wait_seconds: how long a run that begins waits for a server that is not there yet.

    Raises:
        UserError: as ``examine``, or the run began with something else.
    """
    kept = None if folder is None else folder / KEPT
    before = None
    if kept is not None and kept.is_file():
        before = ServerFacts(**json.loads(kept.read_text(encoding="utf-8")))
    try:
        now = examine(wait_seconds if before is None else 0.0)
    except UnreachableError as error:
        if before is None:
            raise
        log.warning("%s: the run goes on with what is cached, and asks it when it needs more", error)
        return before
    if before is not None and before != now:
        raise UserError(
            f"{settings.key}.server",
            f"is {now.said}, and the run began with {before.said}",
            "start that again, or set another run.name",
        )
    if kept is not None and before is None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(now.to_json(), indent=1), sync=True)
    return now
