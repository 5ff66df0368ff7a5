"""Both sides of an example, and which token positions of one correspond to which of the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np

from uld_ds.alignment import segment_boundaries
from uld_ds.data.encoding import EncodedSide

Alignment = Literal["segments", "positional"]


class PairRow(TypedDict):
    """One prepared example, as it is stored.

    ``*_first``/``*_stop`` bound the answer tokens inside ``*_ids``; tokens from ``*_stop`` on end the turn.
    ``*_segments`` holds the token index at which each segment begins, the end of the answer included: both lists
    have the same length, and their n-th entries begin at the same byte.
    """

    student_ids: np.ndarray
    student_length: int
    student_first: int
    student_stop: int
    student_segments: np.ndarray
    teacher_ids: np.ndarray
    teacher_length: int
    teacher_first: int
    teacher_stop: int
    teacher_segments: np.ndarray
    answer_bytes: int


@dataclass(frozen=True)
class _Cut:
    """How much of each side survives truncation."""

    student_tokens: int
    teacher_tokens: int
    answer_bytes: int
    whole: bool


def pair(
    student: EncodedSide, teacher: EncodedSide, *, alignment: Alignment, student_max: int, teacher_max: int
) -> PairRow:
    """Joins the two sides of one example.

    Args:
        student: the student's tokens.
        teacher: the teacher's tokens for the same answer.
        alignment: ``segments``, or ``positional`` for the paper's pairing of the n-th token with the n-th.
        student_max: most tokens on the student's side. Longer answers end at the last boundary that both
            sides share; the end of the turn is then not part of the example.
        teacher_max: the same for the teacher.

    Raises:
        ValueError: nothing of the answer fits.
    """
    if len(student.spans) == 0 or len(teacher.spans) == 0:
        raise ValueError("the answer has no tokens")
    student_starts, teacher_starts = segment_boundaries(student.spans, teacher.spans)
    cut = _truncate(student, teacher, student_starts, teacher_starts, student_max, teacher_max)
    if alignment == "positional":
        length = min(cut.student_tokens, cut.teacher_tokens)
        student_starts = teacher_starts = np.arange(length)
    else:
        student_starts = student_starts[student_starts < cut.student_tokens]
        teacher_starts = teacher_starts[: len(student_starts)]
    student_stop, teacher_stop = student.first + cut.student_tokens, teacher.first + cut.teacher_tokens
    student_ids = student.ids if cut.whole else student.ids[:student_stop]
    teacher_ids = teacher.ids if cut.whole else teacher.ids[:teacher_stop]
    both_end = len(student_ids) > student_stop and len(teacher_ids) > teacher_stop
    return PairRow(
        student_ids=student_ids,
        student_length=len(student_ids),
        student_first=student.first,
        student_stop=student_stop,
        student_segments=_absolute(student_starts, student.first, student_stop if both_end else None),
        teacher_ids=teacher_ids,
        teacher_length=len(teacher_ids),
        teacher_first=teacher.first,
        teacher_stop=teacher_stop,
        teacher_segments=_absolute(teacher_starts, teacher.first, teacher_stop if both_end else None),
        answer_bytes=cut.answer_bytes,
    )


def _truncate(
    student: EncodedSide,
    teacher: EncodedSide,
    student_starts: np.ndarray,
    teacher_starts: np.ndarray,
    student_max: int,
    teacher_max: int,
) -> _Cut:
    num_student, num_teacher = len(student.spans), len(teacher.spans)
    if len(student.ids) <= student_max and len(teacher.ids) <= teacher_max:
        return _Cut(num_student, num_teacher, int(student.spans[-1, 1]), whole=True)
    # A cut before segment k keeps the tokens before it on both sides; after the last segment, all of them.
    student_cuts = np.append(student_starts, num_student)
    teacher_cuts = np.append(teacher_starts, num_teacher)
    fits = (student.first + student_cuts <= student_max) & (teacher.first + teacher_cuts <= teacher_max)
    last = int(np.flatnonzero(fits)[-1]) if fits.any() else 0
    if last == 0:
        raise ValueError(
            f"nothing of the answer fits: the prompt takes {student.first} of {student_max} student tokens, "
            f"{teacher.first} of {teacher_max} teacher tokens (max_length)"
        )
    tokens = int(student_cuts[last])
    return _Cut(tokens, int(teacher_cuts[last]), int(student.spans[tokens - 1, 1]), whole=False)


def _absolute(starts: np.ndarray, first: int, end: int | None) -> np.ndarray:
    absolute = starts + first
    return (absolute if end is None else np.append(absolute, end)).astype(np.int32)
