"""A run as a page that a person mails to a colleague: everything in one file, from the run's folder alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from uld_ds.runs.folder import RunFolder, Who
from uld_ds.runs.progress import read_events
from uld_ds.runs.status import RunStatus, phase_shares, result_of, run_status, steps_of
from uld_ds.utils.redaction import Redactor

Facts = dict[str, Any]


@dataclass(frozen=True)
class RunReport:
    """All that the page shows."""

    recipe: Facts
    recipe_yaml: str
    status: RunStatus
    steps: list[Facts]
    """One event per step, in order."""
    evaluations: list[Facts]
    shares: dict[str, float]
    """Of all steps' seconds."""
    result: Facts | None
    """Of a finished run."""
    lineage: Facts | None
    snapshots: dict[str, Facts]
    """Of ``before``, ``teacher`` and ``after``, those there are."""
    places: list[Facts]
    alignments: list[Facts]
    answers: list[Facts]
    """Prompts, with what the student, the teacher and the student of before say."""

    @property
    def is_finished(self) -> bool:
        return self.result is not None

    @property
    def bits(self) -> dict[str, float | None]:
        """Held-out bits per byte: ``before``, ``after`` (or the latest so far) and ``teacher``."""
        known = self.status.held_out_bits_per_byte
        said = {"before": known.get("before"), "after": known.get("after", known.get("student"))}
        told = self.result["bits_per_byte"] if self.result else {}
        return {**said, "teacher": known.get("teacher"), **{k: v for k, v in told.items() if v is not None}}

    @property
    def student(self) -> str:
        """What it is called."""
        settings = self.recipe["student"]
        base = settings.get("model") or f"a new {(settings.get('from_config') or {}).get('model_type', 'model')}"
        return str(self.recipe.get("registry", {}).get("model_name") or base)

    @property
    def teacher(self) -> str:
        settings = self.recipe["teacher"]
        return str(settings.get("model") or (self.lineage or {}).get("teacher") or settings.get("path"))

    @classmethod
    def read(cls, folder: Path, *, result: Mapping[str, Any] | None = None) -> RunReport:
        """Reads a run's folder.

        Args:
            folder: of the run.
            result: of a run that is about to finish; by default what its folder has.
        """
        redactor = Redactor()
        run = RunFolder(folder)
        events = list(read_events(run.progress))
        steps = steps_of(events)
        # Parsed first: a value that is hidden need not be YAML any more.
        recipe = redactor.tree(yaml.safe_load(run.recipe.read_text(encoding="utf-8")))
        snapshots = {who: _read(run.report_snapshot(who)) for who in get_args(Who)}
        return cls(
            recipe=recipe,
            recipe_yaml=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
            status=run_status(folder),
            steps=steps,
            evaluations=[event for event in events if event["event"] == "evaluation"],
            shares=phase_shares(steps),
            result=redactor.tree(dict(result)) if result is not None else redactor.tree(result_of(folder)),
            lineage=_read(run.report_lineage),
            snapshots={who: content for who, content in snapshots.items() if content is not None},
            places=_read(run.report_places) or [],
            alignments=_read(run.report_alignments) or [],
            answers=_read(run.report_answers) or [],
        )


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None
