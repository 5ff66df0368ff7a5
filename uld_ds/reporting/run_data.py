"""The data of a run's report page, read from the run's folder alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from uld_ds.runs.folder import RunFolder, Who
from uld_ds.runs.progress import read_events
from uld_ds.runs.rounds import judgments_of, rounds_of, shown_answers_of
from uld_ds.runs.status import RunStatus, phase_shares, result_of, run_status, steps_of
from uld_ds.utils.redaction import Redactor

Facts = dict[str, Any]


def names_of_teachers(recipe: Facts, otherwise: str = "", *, weighed: bool = False) -> str:
    """Name the teachers of a recipe's plain values: their models, else ``otherwise``, else the places of their stores.

    Args:
        recipe: a run's recipe.
        otherwise: what a store said that its teacher was, where that is known.
        weighed: whether the weights of several stand before them, where not all are 1.
    """
    if "teachers" not in recipe:
        settings = recipe["teacher"]
        return str(settings.get("model") or otherwise or settings.get("path"))
    teachers = recipe["teachers"]
    weighed = weighed and any(own["weight"] != 1 for own in teachers)
    return ", ".join(
        (f"{own['weight']:g} " if weighed else "") + str(own.get("model") or own.get("name")) for own in teachers
    )


@dataclass(frozen=True)
class RunReport:
    """All that a run's report page shows."""

    recipe: Facts
    """The run's recipe, without secrets."""
    recipe_yaml: str
    """The recipe as YAML, without secrets."""
    status: RunStatus
    steps: list[Facts]
    """One event per step, in order."""
    evaluations: list[Facts]
    """Events of held-out evaluations, in order."""
    shares: dict[str, float]
    """Share of each phase in all steps' seconds."""
    result: Facts | None
    """Facts of a finished run; None before it has finished."""
    lineage: Facts | None
    """Facts of what the student was made from."""
    snapshots: dict[str, Facts]
    """Snapshots of the models: those of ``before``, ``teacher`` and ``after`` that there are."""
    places: list[Facts]
    """Places in held-out answers at which distributions are shown, as text."""
    alignments: list[Facts]
    """Answers as both tokenizers cut them, as ``AlignmentView.to_json`` has it."""
    answers: list[Facts]
    """Prompts with the answers of the trained student, of the student before, of the teacher and of the data."""
    rounds: list[Facts]
    """One event per round of the student's own answers, in order."""
    judgments: list[Facts]
    """One event per round that was trained on as a whole, in order: what the teacher makes of it."""
    shown_answers: list[Facts]
    """Events with some of a round's answers as text, in order."""

    @property
    def is_finished(self) -> bool:
        """Whether the run has a result."""
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
        """Name of the student: that of the registered model, else of the model that it began as."""
        settings = self.recipe["student"]
        base = settings.get("model") or f"a new {(settings.get('from_config') or {}).get('model_type', 'model')}"
        return str(self.recipe.get("registry", {}).get("model_name") or base)

    @property
    def teacher(self) -> str:
        """Name of the teacher, else the place of its store."""
        return names_of_teachers(self.recipe, str((self.lineage or {}).get("teacher") or ""))

    @classmethod
    def read(cls, folder: Path, *, result: Mapping[str, Any] | None = None) -> RunReport:
        """Read the data of the report page from a run's folder, without secrets.

        Args:
            folder: the run's folder.
            result: facts of a run that is about to finish; by default those in its folder.
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
            rounds=rounds_of(events),
            judgments=judgments_of(events),
            shown_answers=shown_answers_of(events),
        )


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
