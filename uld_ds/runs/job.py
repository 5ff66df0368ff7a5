"""What the driver hands to every worker: the recipe, and where the things it names were found or put."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uld_ds.data.prepared import Split
from uld_ds.recipe import Recipe, parse_recipe

EXPORT = "export"
"""Folder in a run's: the student as a Hugging Face directory."""
JOURNALS = "metrics"
"""Folder, in a run's folder, of metrics on their way to MLflow."""
STOPPED = "stopped.txt"
"""File, in a run's folder: see ``Job.stopped_file``."""


@dataclass(frozen=True)
class Job:
    """Everything is resolved: absolute paths, no defaults left to find out, the same for all ranks."""

    recipe: Recipe
    run_dir: Path
    teacher: str
    """Directory or hub id."""
    student: str
    """Directory or hub id the student starts from; its tokenizer is there too."""
    tracking_uri: str
    run_id: str
    """MLflow run; kept across restarts."""
    on_gpu: bool
    student_deepspeed: dict[str, Any]
    """Complete DeepSpeed configuration: a path in the recipe may not lead anywhere from a worker."""
    teacher_deepspeed: dict[str, Any]
    splits: dict[str, str]
    """Folder of each prepared split: ``train``, and ``eval`` where the recipe has one."""
    teacher_facts: dict[str, Any] = field(default_factory=dict)
    """What identifies the teacher: see ``uld_ds.registry.provenance``."""
    code_revision: str = ""
    """Of the code that started the run: files may change while it runs."""

    def split(self, name: str) -> Split:
        """A prepared split."""
        return Split.load(Path(self.splits[name]))

    @property
    def export_dir(self) -> Path:
        """The trained student in Hugging Face layout."""
        return self.run_dir / EXPORT

    @property
    def journals(self) -> Path:
        """Metrics on their way to MLflow."""
        return self.run_dir / JOURNALS

    @property
    def progress_file(self) -> Path:
        """One JSON line per event, written by rank 0, read by whoever watches."""
        return self.run_dir / "progress.jsonl"

    @property
    def skipped_file(self) -> Path:
        """One JSON line per skipped step, with the examples that caused it."""
        return self.run_dir / "skipped.jsonl"

    @property
    def stopped_file(self) -> Path:
        """Why the workers of the last attempt stopped before the end, where a restart would not help."""
        return self.run_dir / STOPPED

    @property
    def outcome_file(self) -> Path:
        """What rank 0 has to say at the end; the driver makes the run's result of it."""
        return self.run_dir / "outcome.json"

    def to_config(self) -> dict[str, Any]:
        """Plain values, as Ray carries them to the workers."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "recipe": self.recipe.model_dump(mode="json"), "run_dir": str(self.run_dir)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Job:
        """The inverse of ``to_config``."""
        return cls(**{**config, "recipe": parse_recipe(config["recipe"]), "run_dir": Path(config["run_dir"])})
