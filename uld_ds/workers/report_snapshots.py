"""What a run keeps for its report while the models are there."""

from __future__ import annotations

import json
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from uld_ds.data.batching import Batcher
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.generation.samples import NUM_ANSWERS, sample_answers
from uld_ds.reporting.alignment_examples import answer_text
from uld_ds.runs.folder import Who
from uld_ds.runs.job import Job
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.cached import CachedTeacher
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.teachers.source import TeacherSource
from uld_ds.training.engine import DistillationEngine
from uld_ds.training.teacher_setup import TeacherSetup
from uld_ds.utils.distributed import Ranks
from uld_ds.utils.files import write_whole
from uld_ds.utils.redaction import Redactor
from uld_ds.workers.snapshots import Showcase


class ReportKeeper:
    """Snapshots of student and teacher. Every method is called on every rank alike.

    Args:
        job: of the run.
        rows: prepared; held-out ones where there are some.
        batcher: the student's side of them.
        tokenizer: the student's.
        ranks: that call together.
        device: of the models.
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

    def beginning(self, teacher: PreTrainedTokenizerBase | None) -> None:
        """What is shown, as text, and how both tokenizers cut it."""
        recipe = self._job.recipe
        self._showcase.write_beginning(teacher, (recipe.student.model or "student", recipe.teacher.model or "teacher"))

    def student(self, who: Who, engine: DistillationEngine, calibration: dict[str, Any] | None) -> None:
        """The student as it is now."""
        spectra = self._showcase.student_distributions(engine.apply_at, self._device)
        self._showcase.write(who, spectra=spectra, calibration=calibration)

    def teacher(
        self, setup: TeacherSetup, source: TeacherSource, rows: Dataset, calibration: dict[str, Any] | None
    ) -> None:
        """Keep what the report says of the teacher on its ``rows``, as far as there is one to ask. Collective."""
        if setup.tokenizer is not None:
            self._present_teacher(source, setup.batcher(rows), setup.tokenizer, calibration)
            return
        store = setup.store_of(rows, held_out=self._job.recipe.data.eval is not None)
        if store is not None:
            self._stored_teacher(store, calibration)

    def _present_teacher(
        self,
        teacher: TeacherSource,
        batcher: TeacherBatcher,
        tokenizer: PreTrainedTokenizerBase,
        calibration: dict[str, Any] | None,
    ) -> None:
        """A teacher that is there."""
        if isinstance(teacher, CachedTeacher):
            if not teacher.is_loaded:
                return
            teacher = teacher.asked
        assert isinstance(teacher, OnlineTeacher)
        spectra = self._showcase.teacher_distributions(teacher.apply_at, batcher, tokenizer, self._device)
        tokens = self._job.recipe.evaluation.sample_tokens
        answers = sample_answers(teacher.language_model, tokenizer, self._rows, "teacher", tokens, self._device)
        self._showcase.write("teacher", spectra=spectra, calibration=calibration, answers=answers)

    def _stored_teacher(self, teacher: TeacherSource, calibration: dict[str, Any] | None) -> None:
        """A teacher that was asked beforehand."""
        said = TeacherTokens.cat(teacher.answers(range(self._showcase.num_examples), 0))
        spectra = self._showcase.stored_distributions(said.spectrum.head, said.log_probs.exp())
        self._showcase.write("teacher", spectra=spectra, calibration=calibration)


def write_answers(job: Job, student: PreTrainedTokenizerBase, said: dict[str, list[str]]) -> None:
    """Keeps prompts with what everybody answers, for the report."""
    job.folder.report.mkdir(exist_ok=True)
    kept = job.folder.report_snapshot("teacher")
    teacher = json.loads(kept.read_text()).get("answers") if kept.is_file() else None
    everybody = {"teacher": teacher or [], **said}
    rows = shown_rows(job)
    items = [
        {
            "prompt": row["prompt"],
            "given": answer_text(row, student),
            **{who: answers[number] for who, answers in everybody.items() if number < len(answers)},
        }
        for number, row in enumerate(rows.select(range(min(NUM_ANSWERS, len(rows)))))
    ]
    write_whole(job.folder.report_answers, json.dumps(Redactor().tree(items)), sync=True)


def shown_rows(job: Job) -> Dataset:
    """Those that a report shows: held-out ones where there are some."""
    return job.split("eval" if "eval" in job.splits else "train").rows
