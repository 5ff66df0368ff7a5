"""Snapshots and answers that a run keeps for its report while the models are there."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from uld_ds.data.batching import Batcher
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.generation.decoding import Answer
from uld_ds.generation.samples import NUM_ANSWERS, given_answer, sample_answers
from uld_ds.runs.folder import Who
from uld_ds.runs.job import Job
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.cached import CachedTeacher
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.teachers.served.teacher import ServedTeacher
from uld_ds.teachers.source import TeacherSource
from uld_ds.training.engine import DistillationEngine
from uld_ds.training.teacher_setup import TeacherSetup
from uld_ds.utils.distributed import Ranks
from uld_ds.utils.files import write_whole
from uld_ds.utils.redaction import Redactor
from uld_ds.workers.snapshots import Showcase


class ReportKeeper:
    """The keeper of snapshots of student and teacher. Every method is called on every rank alike.

    Args:
        job: the run.
        rows: prepared rows; held-out ones where there are some.
        batcher: the student's side of the rows.
        tokenizer: the student's tokenizer.
        ranks: the process group.
        device: device of the models.
    """

    def __init__(
        self,
        job: Job,
        rows: Dataset,
        batcher: Batcher,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self._job = job
        self._rows = rows
        self._device = device
        self._showcase = Showcase(job.folder, rows, batcher, tokenizer, first=ranks.is_first)

    def beginning(self, setup: TeacherSetup) -> None:
        """Keep the shown examples as text, and as both tokenizers cut them.

        Args:
            setup: the teacher that the report shows.
        """
        student = self._job.recipe.student.model or "student"
        self._showcase.write_beginning(setup.tokenizer, (student, setup.settings.model or "teacher"))

    def student(self, who: Who, engine: DistillationEngine, calibration: dict[str, Any] | None) -> None:
        """Keep the student's distributions as they are now, and its calibration. Collective."""
        spectra = self._showcase.student_distributions(engine.apply_at, self._device)
        self._showcase.write(who, spectra=spectra, calibration=calibration)

    def teacher(
        self, setup: TeacherSetup, source: TeacherSource, rows: Dataset, calibration: dict[str, Any] | None
    ) -> None:
        """Keep the teacher's distributions, calibration and answers, as far as there are any. Collective.

        Args:
            setup: the teacher that the report shows.
            source: source of its outputs for the training data.
            rows: rows that the report shows.
            calibration: measured on held-out examples, or None.
        """
        if setup.tokenizer is not None:
            side = TextSide(setup.tokenizer, setup.settings, "teacher")
            self._present_teacher(source, setup.batcher(rows), side, calibration)
            return
        store = setup.store_of(rows, held_out=self._job.recipe.data.eval is not None)
        if store is not None:
            self._stored_teacher(store, calibration)

    def _present_teacher(
        self,
        teacher: TeacherSource,
        batcher: TeacherBatcher,
        side: TextSide,
        calibration: dict[str, Any] | None,
    ) -> None:
        """Keep the snapshot of a teacher that can be asked; none of a cached teacher without its model."""
        if isinstance(teacher, CachedTeacher):
            if not teacher.is_loaded:
                return
            teacher = teacher.asked
        if isinstance(teacher, ServedTeacher):
            # What it says about given text: to write some is another kind of request.
            self._known_outputs(teacher.outputs(batcher.batch(range(self._showcase.num_examples))), calibration)
            return
        assert isinstance(teacher, OnlineTeacher)
        spectra = self._showcase.teacher_distributions(teacher.apply_at, batcher, side.tokenizer, self._device)
        tokens = self._job.recipe.evaluation.sample_tokens
        answers = sample_answers(teacher.language_model, side, self._rows, "teacher", tokens, self._device)
        said = [asdict(answer) for answer in answers]
        self._showcase.write("teacher", spectra=spectra, calibration=calibration, answers=said)

    def _stored_teacher(self, teacher: TeacherSource, calibration: dict[str, Any] | None) -> None:
        """Keep the snapshot of a stored teacher."""
        self._known_outputs(TeacherTokens.cat(teacher.answers(range(self._showcase.num_examples), 0)), calibration)

    def _known_outputs(self, said: TeacherTokens, calibration: dict[str, Any] | None) -> None:
        """Keep the snapshot of a teacher of which outputs at given text are known, and no more."""
        spectra = self._showcase.stored_distributions(said.spectrum.head, said.log_probs.exp())
        self._showcase.write("teacher", spectra=spectra, calibration=calibration)


def write_answers(job: Job, student: TextSide, said: dict[str, list[Answer]]) -> None:
    """Keep prompts with the answers of teacher, student and data, for the report; reasoning beside them.

    Args:
        job: the run.
        student: the student's side.
        said: answers to the first prompts, by whose they are: ``before``, ``after``.
    """
    job.folder.report.mkdir(exist_ok=True)
    kept = job.folder.report_snapshot("teacher")
    teacher = json.loads(kept.read_text(encoding="utf-8")).get("answers") if kept.is_file() else None
    _, rows = job.shown_rows()
    shown = list(rows.select(range(min(NUM_ANSWERS, len(rows)))))
    # Earlier versions kept a text alone.
    kept_answers = [Answer(item, 0, "stop") if isinstance(item, str) else Answer(**item) for item in teacher or []]
    everybody = {"given": [given_answer(student, row) for row in shown], "teacher": kept_answers, **said}
    items = []
    for number, row in enumerate(shown):
        item = {"prompt": row["prompt"]}
        for who, answers in everybody.items():
            if number < len(answers):
                item |= {who: answers[number].text}
                item |= {f"{who}_reasoning": answers[number].reasoning} if answers[number].reasoning else {}
        items.append(item)
    write_whole(job.folder.report_answers, json.dumps(Redactor().tree(items)), sync=True)
