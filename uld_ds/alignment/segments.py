"""Segments of a text: two tokenizations of it, cut wherever both have a boundary.

Spans are half-open UTF-8 byte ranges, one per token, that tile the text. A *segment* is a maximal pair of
token runs, one per side, over the same bytes: it begins wherever a token of each side begins at the same
byte. There, and only there, have both models read exactly the same text.

**Zero-width tokens** (the space SentencePiece puts before a text, part of a character that a later token
completes, an end-of-turn token placed after the answer) belong to the segment that follows, or to the last
one at the end of the text. Where both sides have them at one byte they are paired in order, each pair a
segment of its own: between them, too, both models have read the same text. So two identical tokenizations
give one token per segment, and an end token on each side, with the span ``(n, n)`` after an answer of ``n``
bytes, gives the last segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uld_ds.tokenization.sections import Ints


@dataclass(frozen=True)
class Segment:
    """A segment of a text: token runs, one per side, that cover the same bytes.

    Attributes:
        student: indices of the student's tokens, never empty.
        teacher: indices of the teacher's tokens, never empty.
    """

    student: range
    teacher: range


def segment_boundaries(student_spans: ArrayLike, teacher_spans: ArrayLike) -> tuple[Ints, Ints]:
    """Find the first token of every segment, on each side.

    Args:
        student_spans: ``[n, 2]`` byte ranges that tile a text.
        teacher_spans: ``[m, 2]`` byte ranges that tile the same text.

    Returns:
        Two increasing arrays ``[s]`` of token indices, both beginning with 0. Segment ``i`` runs from entry
        ``i`` to entry ``i + 1``, or to the last token.

    Raises:
        ValueError: spans out of order, overlapping or with a hole, or sides that cover different ranges.
    """
    student, teacher = _checked(student_spans, "student"), _checked(teacher_spans, "teacher")
    _check_same_range(student, teacher)
    if len(student) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    base = student[0, 0]
    student_keys, teacher_keys = student[:, 0] - base, teacher[:, 0] - base
    student_rank, teacher_rank = _rank(student_keys), _rank(teacher_keys)
    if student_rank is not None and teacher_rank is not None:
        # Tokens that begin at the same byte are told apart by their order there.
        num_ranks = int(max(student_rank.max(), teacher_rank.max())) + 1
        student_keys = student_keys * num_ranks + student_rank
        teacher_keys = teacher_keys * num_ranks + teacher_rank
        _, student_starts, teacher_starts = np.intersect1d(
            student_keys, teacher_keys, assume_unique=True, return_indices=True
        )
        return student_starts, teacher_starts
    return _shared(student_keys, teacher_keys), _shared(teacher_keys, student_keys)


def align(student_spans: Sequence[tuple[int, int]], teacher_spans: Sequence[tuple[int, int]]) -> list[Segment]:
    """Cut a text into segments, which partition the tokens of both sides in order.

    Args:
        student_spans: half-open byte ranges that tile a text, one per token (`token_spans`).
        teacher_spans: the teacher's byte ranges of the same text.

    Raises:
        ValueError: spans out of order, overlapping or with a hole, or sides that cover different ranges.
    """
    student_starts, teacher_starts = (s.tolist() for s in segment_boundaries(student_spans, teacher_spans))
    student_stops = [*student_starts, len(student_spans)][1:]
    teacher_stops = [*teacher_starts, len(teacher_spans)][1:]
    return [
        Segment(student=range(student_start, student_stop), teacher=range(teacher_start, teacher_stop))
        for student_start, student_stop, teacher_start, teacher_stop in zip(
            student_starts, student_stops, teacher_starts, teacher_stops, strict=True
        )
    ]


def alignment_rate(student_spans: ArrayLike, teacher_spans: ArrayLike) -> float:
    """Compute the share of student tokens that begin a segment, in ``[0, 1]``; 0 if there are no tokens.

    Args:
        student_spans: ``[n, 2]`` byte ranges that tile a text.
        teacher_spans: ``[m, 2]`` byte ranges that tile the same text.

    Raises:
        ValueError: spans out of order, overlapping or with a hole, or sides that cover different ranges.
    """
    student_starts, _ = segment_boundaries(student_spans, teacher_spans)
    num_tokens = len(np.asarray(student_spans))
    return len(student_starts) / num_tokens if num_tokens else 0.0


def _checked(spans: ArrayLike, side: str) -> NDArray[np.int64]:
    """Convert ``spans`` to an ``[n, 2]`` array and check that they tile a range.

    Raises:
        ValueError: they do not tile a range; says which side, which span and how.
    """
    array = np.asarray(spans, np.int64).reshape(-1, 2)
    broken = np.flatnonzero(array[:, 1] < array[:, 0])
    if len(broken):
        raise ValueError(f"{side} span {broken[0]} ends before it begins: {_show(array[broken[0]])}")
    broken = np.flatnonzero(array[1:, 0] != array[:-1, 1])
    if len(broken):
        before, after = array[broken[0]], array[broken[0] + 1]
        if after[0] > before[1]:
            problem = "leave a hole"
        elif after[0] < before[0]:
            problem = "are out of order"
        else:
            problem = "overlap"
        raise ValueError(f"{side} spans {broken[0]} and {broken[0] + 1} {problem}: {_show(before)}, {_show(after)}")
    return array


def _check_same_range(student: Ints, teacher: Ints) -> None:
    if len(student) == 0 and len(teacher) == 0:
        return
    student_range, teacher_range = (
        f"[{side[0, 0]}, {side[-1, 1]})" if len(side) else "nothing" for side in (student, teacher)
    )
    if student_range != teacher_range:
        raise ValueError(
            f"the sides cover different bytes: student spans {student_range}, teacher spans {teacher_range}"
        )


def _show(span: Ints) -> str:
    return f"({span[0]}, {span[1]})"


def _rank(starts: Ints) -> Ints | None:
    """Count the tokens before each token that begin at the same byte, ``[n]``; None if there are none anywhere."""
    new = np.append(True, starts[1:] != starts[:-1])
    if new.all():
        return None
    index = np.arange(len(starts))
    return index - np.maximum.accumulate(np.where(new, index, 0))


def _shared(starts: Ints, others: Ints) -> Ints:
    """Find the indices of ``starts`` that also occur among ``others``, the first of equals only."""
    present = np.zeros(max(int(starts[-1]), int(others[-1])) + 1, bool)
    present[others] = True
    hit = present[starts]
    hit[1:] &= starts[1:] != starts[:-1]
    return np.flatnonzero(hit)
