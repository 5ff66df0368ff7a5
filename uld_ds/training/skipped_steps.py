"""Steps that were skipped because something in them was not finite, as lines of JSON in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

from uld_ds.training.step_result import StepResult

# A whole batch may be under suspicion; a line stays readable.
MOST_SHOWN = 64
OWN_ANSWER = "an own answer of the student"


class SkippedSteps:
    """The file of a run's skipped steps, each once: a run that resumes does some steps again.

    Args:
        file: the run's file; it need not be there yet.
        rows: prepared training examples, which know their place in the user's data.
    """

    def __init__(self, file: Path, rows: Dataset) -> None:
        self._file = file
        self._rows = rows
        self._known = {line["step"] for line in read_skipped(file)}

    def add(self, step: int, result: StepResult) -> dict[str, Any]:
        """Write one skipped step, counted from 1, and return its line as plain values."""
        examples = list(result.suspects[:MOST_SHOWN])
        # Numbers beyond the data's are own answers of the student, which have no place there.
        given = [example for example in examples if example < len(self._rows)]
        rows = self._rows.select(given) if given else None
        of_own = [OWN_ANSWER] * (len(examples) - len(given))
        line = {
            "step": step,
            "reason": result.reason,
            "num_examples": len(result.suspects),
            "places": ([] if rows is None else rows["place"][:]) + of_own,
            "examples": examples,
            "digests": [] if rows is None else rows["digest"][:],
        }
        if step not in self._known:
            self._known.add(step)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line


def read_skipped(file: Path) -> list[dict[str, Any]]:
    """Read all whole lines of a file of skipped steps."""
    if not file.is_file():
        return []
    return [
        json.loads(line) for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
