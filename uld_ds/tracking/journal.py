"""Journals of metrics, which are on disk first: a run never waits for an MLflow server.

Whoever measures appends lines to a journal in the run's folder; one thread, on the first rank, delivers them. What
makes this right:

- *A step is written once.* A run that resumes from a checkpoint does some steps again. Their lines are there
  already and are not written a second time: a resumed run computes the same values bit for bit, and timings stay
  those of the first attempt. So the global step never goes backwards in a chart, and no step is there twice.
- *A line is delivered once.* It carries its time, and MLflow takes a point of the same name, step, time and value
  for the same point: what was sent but not yet noted as delivered may be sent again.
- *What was delivered is on the disk.* Lines are synchronized before they are sent, and before a checkpoint: what a
  node that goes down loses of the journal is no more than what will be computed again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Line:
    """A line of a journal: metrics of one step."""

    step: int
    time: int
    """Time of measurement in milliseconds since 1970."""
    metrics: dict[str, float]


class Journal:
    """The file of one writer's metrics, each name and step once.

    Args:
        folder: folder of journals; made if it is not there.
        name: name of the writer, unique in the run.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"{name}{_SUFFIX}"
        _drop_torn_line(self._file)
        self._known: dict[str, int] = {}
        for line in read_lines(self._file):
            self._note(line.step, line.metrics)

    @property
    def last_step(self) -> int:
        """Highest step in the journal, -1 for none."""
        return max(self._known.values(), default=-1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append what is new of one step's metrics; values that are not finite are left out."""
        new = {name: float(v) for name, v in metrics.items() if math.isfinite(v) and step > self._known.get(name, -1)}
        if not new:
            return
        # One write: a line is whole or is not there.
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": int(time.time() * 1000), "metrics": new}) + "\n")
        self._note(step, new)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        _sync(self._file)

    def _note(self, step: int, metrics: Mapping[str, float]) -> None:
        for name in metrics:
            self._known[name] = max(step, self._known.get(name, -1))


def read_lines(file: Path) -> Iterator[Line]:
    """Yield all whole lines of a journal."""
    if file.is_file():
        with file.open("rb") as stream:
            for data in stream:
                if data.endswith(b"\n"):
                    yield Line(**json.loads(data))


def history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read steps and values, in order, of every metric in a folder of journals."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob(f"*{_SUFFIX}")):
        for line in read_lines(file):
            for name, value in line.metrics.items():
                found.setdefault(name, []).append((line.step, value))
    return found


def _drop_torn_line(file: Path) -> None:
    """Cut off half a line at the end, which a writer that was killed may have left."""
    if not file.is_file():
        return
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(file, whole)


def _sync(file: Path) -> None:
    if file.is_file():
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
