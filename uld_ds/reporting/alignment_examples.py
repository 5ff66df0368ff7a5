"""Alignments of prepared rows' answers, to be shown as examples."""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from uld_ds.reporting.alignment_view import AlignmentView, SideView

log = logging.getLogger(__name__)

_SHOWN_CHARACTERS = 600


def alignments(
    rows: Dataset, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase | None, names: tuple[str, str]
) -> list[AlignmentView]:
    """Align the answers of some rows, as both tokenizers cut them; none without the teacher's tokenizer.

    Args:
        rows: prepared rows.
        student: the student's tokenizer.
        teacher: the teacher's tokenizer, or None.
        names: what the student's and the teacher's tokenizer are called.
    """
    if teacher is None:
        return []
    found = []
    for row in rows:
        text = answer_text(row, student)[:_SHOWN_CHARACTERS]
        try:
            sides = [SideView.of(side, text, name) for side, name in zip((student, teacher), names, strict=True)]
            found.append(AlignmentView.of(text, *sides))
        except ValueError as error:  # a picture; the figures are there without it
            log.info("no picture of an answer: %s", error)
    return found


def answer_text(row: dict[str, Any], student: PreTrainedTokenizerBase) -> str:
    """Decode a prepared row's answer, as far as the student's tokens spell it."""
    spelling = [
        row["student_ids"][place]
        for place, spells in zip(row["student_answers"], row["student_in_text"], strict=True)
        if spells
    ]
    return str(student.decode(spelling, clean_up_tokenization_spaces=False))
