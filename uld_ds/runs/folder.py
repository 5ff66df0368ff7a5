"""The names of all files and folders in a run's folder, defined here alone. Cheap to import.

The names are a contract: runs of earlier releases are read and resumed by them, and people's scripts know them. Whoever
adds one documents it in docs/runs.md; a test holds the two against each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Who = Literal["before", "teacher", "after"]
"""Model whose distributions and answers a report shows: the student before or after training, or the teacher."""
_CHECKPOINT = re.compile(r"^checkpoint_(\d{9})(?:_(\d+))?$")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files and folders, by name; it makes and reads none of them.

    Other commands that work for a while (``store build``, ``generate``, ``evaluate``) keep their progress and logs in a
    folder of their own, under the same names.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, without secrets, written when the run begins."""
        return self.path / "recipe.yaml"

    @property
    def prepared(self) -> Path:
        """The names, as JSON, of each split's prepared examples that the run learns from."""
        return self.path / "prepared.json"

    @property
    def bad_examples(self) -> Path:
        """Count and list, as JSON, of the rows of each split that were left out."""
        return self.path / "bad_examples.json"

    @property
    def student(self) -> Path:
        """The student before training, where the recipe makes one instead of naming one."""
        return self.path / "student"

    @property
    def teacher(self) -> Path:
        """Cached teacher outputs, for later epochs and restarts; of several teachers, in a folder of its name each."""
        return self.path / "teacher"

    @property
    def teacher_precision(self) -> Path:
        """The precision, as JSON, that was chosen for each teacher whose recipe says ``precision: auto``."""
        return self.path / "teacher_precision.json"

    @property
    def rollouts(self) -> Path:
        """The student's own answers, round by round."""
        return self.path / "rollouts"

    @property
    def generated(self) -> Path:
        """The teacher's answers of ``uld-ds generate``, where the recipe names no other place."""
        return self.path / "answers"

    @property
    def progress(self) -> Path:
        """One JSON line per event, written by rank 0, read by whoever watches."""
        return self.path / "progress.jsonl"

    @property
    def logs(self) -> Path:
        """Two log files per rank: lines for a person, and lines of JSON."""
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        """Journals of metrics on their way to MLflow."""
        return self.path / "metrics"

    @property
    def profile(self) -> Path:
        """A trace of each step that ``profile.steps`` names."""
        return self.path / "profile"

    @property
    def skipped(self) -> Path:
        """One JSON line per skipped step, with the examples that caused it."""
        return self.path / "skipped.jsonl"

    @property
    def stop(self) -> Path:
        """The request to write a checkpoint and leave: a file that anybody may make."""
        return self.path / "STOP"

    @property
    def stopped(self) -> Path:
        """The reason why the workers of the last attempt stopped early, where a restart would not help."""
        return self.path / "stopped.txt"

    @property
    def outcome(self) -> Path:
        """Rank 0's facts at the end of training, of which the driver makes the run's result."""
        return self.path / "outcome.json"

    @property
    def result(self) -> Path:
        """The facts that ``--json`` prints; a run that has this file is finished."""
        return self.path / "result.json"

    @property
    def export(self) -> Path:
        """The trained student in Hugging Face layout."""
        return self.path / "export"

    @property
    def best(self) -> Path:
        """The checkpoint with the best held-out bits per byte."""
        return self.path / "best"

    @property
    def checkpoint_list(self) -> Path:
        """Ray's own list of the checkpoints that it has taken."""
        return self.path / "checkpoint_manager_snapshot.json"

    @property
    def universal(self) -> Path:
        """A checkpoint while it is divided anew among another number of ranks."""
        return self.path / ".universal"

    @property
    def run_id(self) -> Path:
        """The id of the MLflow run; training has begun where this file is."""
        return self.path / "mlflow_run_id"

    @property
    def run_identity(self) -> Path:
        """The tag's value by which an MLflow run is found when its creation ended before its id was known."""
        return self.path / "mlflow_run_identity"

    @property
    def run_status(self) -> Path:
        """The status with which the run ended, until MLflow has heard of it."""
        return self.path / "mlflow_status"

    @property
    def report_page(self) -> Path:
        """The run's report, a page of HTML to mail."""
        return self.path / "report.html"

    @property
    def report(self) -> Path:
        """The material of the report page, kept while the models were there."""
        return self.path / "report"

    @property
    def report_places(self) -> Path:
        """The places in held-out answers at which the report shows distributions, as text."""
        return self.report / "places.json"

    @property
    def report_alignments(self) -> Path:
        """The first answers as both tokenizers cut them, for the report."""
        return self.report / "alignment.json"

    @property
    def report_answers(self) -> Path:
        """Prompts with the answers of teacher, student and data, for the report."""
        return self.report / "answers.json"

    @property
    def report_lineage(self) -> Path:
        """The origin of the student, for the report."""
        return self.report / "lineage.json"

    def report_snapshot(self, who: Who) -> Path:
        """Name the file of one model's distributions and calibration, for the report."""
        return self.report / f"{who}.json"

    def checkpoints(self) -> list[Path]:
        """List the folders of checkpoints that are there, whole or not, the oldest first."""
        return sorted(self._checkpoints(), key=lambda folder: step_of(folder.name))

    def checkpoints_of(self, step: int) -> list[Path]:
        """List the folders of a step's checkpoints, the oldest first: one that was damaged keeps its name."""
        return [folder for folder in self.checkpoints() if step_of(folder.name)[0] == step]

    def new_checkpoint(self, step: int) -> Path:
        """Name a folder for the checkpoint of a step that is not there yet."""
        plain = self.path / f"checkpoint_{step:09d}"
        number, folder = 0, plain
        while folder.exists():
            number += 1
            folder = plain.with_name(f"{plain.name}_{number}")
        return folder

    def _checkpoints(self) -> Iterator[Path]:
        return (item for item in self.path.iterdir() if _CHECKPOINT.match(item.name) and item.is_dir())


def step_of(name: str) -> tuple[int, int]:
    """Read step and number from a checkpoint folder's name, which sort by age; (-1, -1) from another name."""
    found = _CHECKPOINT.match(name)
    return (-1, -1) if found is None else (int(found[1]), int(found[2] or 0))


NAMES = RunFolder(Path())
"""Paths relative to any run's folder, for texts that name them and for artifacts that are called alike."""
