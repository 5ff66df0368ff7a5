"""A run's progress as lines of JSON in its folder.

Rank 0 writes, anybody who sees the folder reads: the command that started the run, another shell, a plot. A file
survives both ends and needs no port.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class ProgressWriter:
    """A writer of a run's events; each line is whole or not there, because it is one write."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def start(self, step: int, total: int, workers: int) -> None:
        """Record that an attempt begins, or begins again, with ``step`` steps of ``total`` done."""
        self._write({"event": "start", "step": step, "total": total, "workers": workers})

    def end(self, status: str, reason: str = "") -> None:
        """Record that the last attempt is over: ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._write({"event": "end", "status": status, "reason": reason})

    def checkpoint(self, step: int, seconds: float) -> None:
        """Record that the first rank's part of a step's checkpoint is on storage, written in ``seconds``.

        It is written beside training, which does not wait for it.
        """
        self._write({"event": "checkpoint", "step": step, "seconds": seconds})

    def stage(self, text: str) -> None:
        """Record what the run is busy with, e.g. ``loading the teacher``."""
        self._write({"event": "stage", "text": text})

    def step(self, step: int, total: int, metrics: dict[str, float], *, text: str | None = None) -> None:
        """Record that a step of ``total`` is done; ``text`` says what it was about, where metrics do not."""
        about = {} if text is None else {"text": text}
        self._write({"event": "step", "step": step, "total": total, **about, **metrics})

    def evaluation(self, step: int, who: str, bits_per_byte: float) -> None:
        """Record a held-out evaluation: ``who`` is ``teacher``, ``before``, ``student`` or ``after``."""
        self._write({"event": "evaluation", "step": step, "who": who, "bits_per_byte": bits_per_byte})

    def skipped(self, step: int, total: int, reason: str, places: list[str]) -> None:
        """Record a skipped step of ``total``, and where the examples that caused it are in the user's data."""
        event = {"event": "skipped", "step": step, "total": total, "reason": reason, "places": places}
        self._write(event)

    def sampling(self, number: int, done: int, asked: int) -> None:
        """Record that ``done`` of the ``asked`` own answers of a round are sampled, on the first rank."""
        self._write({"event": "sampling", "round": number, "done": done, "asked": asked})

    def round(self, facts: Mapping[str, Any], *, every: int, warnings: Mapping[str, str]) -> None:
        """Record the facts of a round of own answers, which serves ``every`` steps; a resumed run records it again.

        Args:
            facts: facts of the round, with its number as ``round`` and its first step as ``step``.
            every: optimizer steps between two rounds.
            warnings: what a person should look at, by its kind.
        """
        self._write({"event": "round", **_finite(facts), "every": every, "warnings": dict(warnings)})

    def round_judged(self, facts: Mapping[str, Any]) -> None:
        """Record what the teacher makes of a round of own answers, once all of them were trained on."""
        self._write({"event": "round_judged", **_finite(facts)})

    def rollout_answers(self, number: int, step: int, answers: Sequence[Mapping[str, Any]]) -> None:
        """Record some answers of a round as text, with the nats of student and teacher."""
        self._write({"event": "rollout_answers", "round": number, "step": step, "answers": [*map(_finite, answers)]})

    def warning(self, text: str) -> None:
        """Record something that a person should look at."""
        self._write({"event": "warning", "text": text})

    def _write(self, event: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")


def _finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not finite, for which JSON has no number."""
    return {name: value for name, value in facts.items() if not isinstance(value, float) or math.isfinite(value)}


def read_events(file: Path) -> Iterator[dict[str, Any]]:
    """Yield all whole events of a run, in order; a writer that was killed may have left half a line."""
    if not file.is_file():
        return
    with file.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n") and line.startswith(b"{"):
                with suppress(ValueError):  # half a line, and the next attempt's first behind it
                    yield json.loads(line)


class ProgressReader:
    """A reader of the events that were not there when it was made."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._position = file.stat().st_size if file.is_file() else 0
        self._rest = ""

    def new_events(self) -> Iterator[dict[str, Any]]:
        """Yield the events since the last call, in order."""
        if not self._file.is_file():
            return
        with self._file.open(encoding="utf-8") as file:
            file.seek(self._position)
            text = self._rest + file.read()
            self._position = file.tell()
        *lines, self._rest = text.split("\n")
        yield from (json.loads(line) for line in lines if line)
