"""The job that the driver hands to every worker: the recipe, and where the things it names were found or put."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from uld_ds.data.prepared import Split
from uld_ds.data.teacher_views import view_of
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.recipe.models import ONLY_TEACHER
from uld_ds.runs.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """A training run as its workers get it, the same for all ranks: absolute paths, no defaults left to find out."""

    recipe: Recipe
    run_dir: Path
    teachers: dict[str, str]
    """Directory or hub id of each teacher, by the recipe's name of it."""
    student: str
    """Directory or hub id that the student starts from; its tokenizer is there too."""
    tracking_uri: str
    run_id: str
    """Id of the MLflow run; kept across restarts."""
    on_gpu: bool
    student_deepspeed: dict[str, Any]
    """Complete DeepSpeed configuration of the student: a path in the recipe may not lead anywhere from a worker."""
    teachers_deepspeed: dict[str, dict[str, Any]]
    """Complete DeepSpeed configuration of each teacher, by its name."""
    splits: dict[str, str]
    """Folder of each prepared split: ``train``, ``eval`` where the recipe has one, ``prompts`` where it has rollouts.

    Where all answers are the student's own, the prompts are what it trains on."""
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Facts of the engine that each served teacher runs in, by the teacher's name: see ``ServerFacts``."""
    teacher_facts: dict[str, Any] = field(default_factory=dict)
    """Facts that identify the teachers: see ``uld_ds.registry.provenance``."""
    code_revision: str = ""
    """Revision of the code that started the run: files may change while it runs."""

    def split(self, name: str) -> Split:
        """Load a prepared split, ``train``, ``eval`` or ``prompts``."""
        return Split.load(Path(self.splits[name]))

    def cached_outputs(self, teacher: str) -> Path:
        """Name the folder of a teacher's cached outputs."""
        return cached_outputs(self.folder, teacher)

    def rows(self, name: str) -> Dataset:
        """Load the rows of a prepared split, or of the prompts."""
        return self.split(name).rows

    def shown_rows(self) -> tuple[int, Dataset]:
        """Select the rows that pages and reports show, and the teacher whose view they are, by its number.

        They are held-out ones where there are some, else training ones. Of several teachers it is the first that
        judges some of them, and the rows are those.
        """
        rows = self.rows("eval" if "eval" in self.splits else "train")
        for number, settings in enumerate(self.recipe.teachers):
            view = view_of(rows, settings.name)
            judged = np.arange(len(view)) if view is rows else np.flatnonzero(view["teacher_length"])
            if len(judged):
                return number, view if len(judged) == len(view) else view.select(judged)
        return 0, rows

    @property
    def folder(self) -> RunFolder:
        """Names of the files in the run's folder."""
        return RunFolder(self.run_dir)

    @property
    def export_dir(self) -> Path:
        """Folder of the trained student: ``RunFolder.export``."""
        return self.folder.export

    @property
    def journals(self) -> Path:
        """Folder of the metrics' journals: ``RunFolder.metrics``."""
        return self.folder.metrics

    @property
    def progress_file(self) -> Path:
        """File of the run's events: ``RunFolder.progress``."""
        return self.folder.progress

    @property
    def skipped_file(self) -> Path:
        """File of the skipped steps: ``RunFolder.skipped``."""
        return self.folder.skipped

    @property
    def stopped_file(self) -> Path:
        """File with the reason why the workers stopped early: ``RunFolder.stopped``."""
        return self.folder.stopped

    @property
    def outcome_file(self) -> Path:
        """File of rank 0's facts at the end of training: ``RunFolder.outcome``."""
        return self.folder.outcome

    def to_config(self) -> dict[str, Any]:
        """Convert the job to plain values, as Ray carries them to the workers."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "recipe": self.recipe.model_dump(mode="json"), "run_dir": str(self.run_dir)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Job:
        """Make the job from the plain values of ``to_config``."""
        return cls(**{**config, "recipe": parse_recipe(config["recipe"]), "run_dir": Path(config["run_dir"])})


def cached_outputs(folder: RunFolder, teacher: str) -> Path:
    """Name the folder of a teacher's cached outputs; of the only one, ``RunFolder.teacher`` itself."""
    return folder.teacher if teacher == ONLY_TEACHER else folder.teacher / teacher
