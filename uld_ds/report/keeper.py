"""What a run keeps for its report while the models are there."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from uld_ds.data.teacher_batches import TeacherBatcher
from uld_ds.data.windows import Batcher, padding_id
from uld_ds.distributed import Ranks
from uld_ds.engine import DistillationEngine
from uld_ds.job import Job
from uld_ds.places import write_whole
from uld_ds.redaction import Redactor
from uld_ds.report.snapshots import NUM_ANSWERS, Showcase, Who, answer_text
from uld_ds.report.snapshots_folder import FOLDER
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.teachers.remembering import RememberingTeacher
from uld_ds.teachers.source import TeacherSource
from uld_ds.teachers.tokens import TeacherTokens

log = logging.getLogger(__name__)

REPETITION_PENALTY = 1.3


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
        self._showcase = Showcase(job.run_dir, rows, batcher, tokenizer, first=ranks.is_first)

    def beginning(self, teacher: PreTrainedTokenizerBase | None) -> None:
        """What is shown, as text, and how both tokenizers cut it."""
        recipe = self._job.recipe
        self._showcase.write_beginning(teacher, (recipe.student.model or "student", recipe.teacher.model or "teacher"))

    def student(self, who: Who, engine: DistillationEngine, calibration: dict[str, Any] | None) -> None:
        """The student as it is now."""
        spectra = self._showcase.of_student(engine.look, self._device)
        self._showcase.write(who, spectra=spectra, calibration=calibration)

    def teacher(
        self,
        teacher: TeacherSource,
        batcher: TeacherBatcher,
        tokenizer: PreTrainedTokenizerBase,
        calibration: dict[str, Any] | None,
    ) -> None:
        """A teacher that is there."""
        if isinstance(teacher, RememberingTeacher):
            if not teacher.is_loaded:
                return
            teacher = teacher.asked
        assert isinstance(teacher, OnlineTeacher)
        spectra = self._showcase.of_teacher(teacher.look, batcher, tokenizer, self._device)
        tokens = self._job.recipe.evaluation.sample_tokens
        answers = sample_answers(teacher.language_model, tokenizer, self._rows, "teacher", tokens, self._device)
        self._showcase.write("teacher", spectra=spectra, calibration=calibration, answers=answers)

    def stored_teacher(self, teacher: TeacherSource, calibration: dict[str, Any] | None) -> None:
        """A teacher that was asked beforehand."""
        said = TeacherTokens.cat(teacher.answers(range(self._showcase.num_examples), 0))
        spectra = self._showcase.of_store(said.spectrum.head, said.log_probs.exp())
        self._showcase.write("teacher", spectra=spectra, calibration=calibration)


def sample_answers(
    lm: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, side: str, max_new_tokens: int, device: torch.device
) -> list[str]:
    """What a model answers to the first prompts of prepared rows: the likeliest token each time.

    Of a model that is sharded over ranks: collective, and the same on all of them.
    """
    if max_new_tokens == 0:
        return []
    prompts = [_prompt_ids(row, side) for row in rows.select(range(min(NUM_ANSWERS, len(rows))))]
    input_ids, mask = _left_padded(prompts, padding_id(tokenizer))
    own = lm.generation_config
    options = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        repetition_penalty=REPETITION_PENALTY,
        eos_token_id=tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id,
        pad_token_id=padding_id(tokenizer),
        decoder_start_token_id=own.decoder_start_token_id,
    )
    with torch.no_grad():
        said = lm.generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=options,
            # Every rank asks the same and stops at the same token.
            synced_gpus=False,
        )
    # A decoder says its first token before the answer, and not the prompt.
    begins = 1 if lm.config.is_encoder_decoder else input_ids.shape[1]
    return [str(tokenizer.decode(row[begins:], skip_special_tokens=True)) for row in said]


def _prompt_ids(row: dict[str, Any], side: str) -> list[int]:
    """The tokens of a prepared row's prompt, up to its last answer."""
    encoder = row[f"{side}_encoder_ids"]
    if encoder:
        return list(encoder)
    answers = np.asarray(row[f"{side}_answers"])
    starts = np.flatnonzero(np.diff(answers, prepend=-1) > 1)
    return list(row[f"{side}_ids"][: int(answers[starts[-1]])])


def _left_padded(prompts: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def write_answers(job: Job, student: PreTrainedTokenizerBase, said: dict[str, list[str]]) -> None:
    """Keeps prompts with what everybody answers, for the report."""
    folder = job.run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    kept = folder / "teacher.json"
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
    write_whole(folder / "answers.json", json.dumps(Redactor().tree(items)))


def shown_rows(job: Job) -> Dataset:
    """Those that a report shows: held-out ones where there are some."""
    return job.split("eval" if "eval" in job.splits else "train").rows
