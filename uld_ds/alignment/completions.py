"""The completion index: which of the student's tokens finish what a token of the teacher's spells.

Where the teacher would write ``56`` and the student has no such token, the student writes ``5``; what comes next is
then one of its tokens that begin with ``6``: a *completion set* (event-set completion distillation, arXiv 2609.34738,
section 3). In the student's tokens sorted by their bytes such a set is a range.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from uld_ds.tokenization.vocabulary import Ints, Vocabulary

NONE = -1
"""Number that stands for "no token" and "no place"."""


@dataclass(frozen=True)
class CompletionIndex:
    """Completion sets for all pairs of a teacher's token and a student's token that the former's bytes begin with.

    Only teacher's tokens whose bytes no token of the student spells are in it.
    """

    order: Ints
    """[n] the student's tokens that spell something, sorted by their bytes."""
    canonical: Ints
    """[V_s] for each of the student's tokens the one that stands for its bytes in ``student``, or -1."""
    begin: Ints
    """[V_t] place of each teacher's token among all teacher's tokens sorted by bytes; -1 for those not in the index.

    Tokens of the same bytes have the same place."""
    end: Ints
    """[V_t] the first place behind those of all tokens that begin with its bytes."""
    teacher: Ints
    """[P] teacher's token of each pair, ascending."""
    student: Ints
    """[P] student's token of each pair, ascending within a teacher's token: a strict beginning of its bytes."""
    low: Ints
    """[P] first place in ``order`` of the tokens that begin with what is left of the teacher's bytes."""
    high: Ints
    """[P] the place behind the last of them; more than ``low``: pairs that nothing completes are left out."""

    @classmethod
    def of(cls, student: Vocabulary, teacher: Vocabulary) -> CompletionIndex:
        """Build the index of two vocabularies."""
        ids = student.by_bytes()
        spelled = sorted((bytes_, index) for index, bytes_ in enumerate(student.spellings) if bytes_)
        sorted_bytes = [bytes_ for bytes_, _ in spelled]
        canonical = np.full(len(student), NONE, np.int64)
        for bytes_, index in spelled:
            canonical[index] = ids[bytes_]
        begin, end = _places(teacher, ids)
        pairs = [
            (index, *pair)
            for index in np.flatnonzero(begin >= 0).tolist()
            for pair in _completed(teacher.spellings[index] or b"", ids, sorted_bytes)
        ]
        columns = np.array(pairs, np.int64).reshape(-1, 4).T
        order = np.array([index for _, index in spelled], np.int64)
        return cls(order, canonical, begin, end, *columns)

    @classmethod
    def nothing(cls, num_student: int, num_teacher: int) -> CompletionIndex:
        """Build the index of two vocabularies of which the student's has all that the teacher's has."""
        none = np.zeros(0, np.int64)
        absent = np.full(num_teacher, NONE, np.int64)
        return cls(none, np.full(num_student, NONE, np.int64), absent, absent.copy(), none, none, none, none)

    @classmethod
    def names(cls) -> list[str]:
        """List the names of the arrays."""
        return [field.name for field in fields(cls)]


def _places(teacher: Vocabulary, ids: dict[bytes, int]) -> tuple[Ints, Ints]:
    """Find the range of places of what begins with each of the teacher's tokens that the student has not."""
    spellings = sorted(bytes_ for bytes_ in teacher.spellings if bytes_)
    begin = np.full(len(teacher), NONE, np.int64)
    end = begin.copy()
    for index, bytes_ in enumerate(teacher.spellings):
        if bytes_ and bytes_ not in ids:
            begin[index], end[index] = _range(spellings, bytes_)
    return begin, end


def _completed(spelled: bytes, ids: dict[bytes, int], student: Sequence[bytes]) -> list[tuple[int, int, int]]:
    """List the student's tokens that ``spelled`` strictly begins with, by id, with the range of what completes it."""
    found = []
    for length in range(1, len(spelled)):
        index = ids.get(spelled[:length], NONE)
        if index != NONE:
            low, high = _range(student, spelled[length:])
            if low < high:
                found.append((index, low, high))
    return sorted(found)


def _range(spellings: Sequence[bytes], beginning: bytes) -> tuple[int, int]:
    """Find the range of sorted byte strings that begin with ``beginning``."""
    low = bisect_left(spellings, beginning)
    # The next larger string that does not begin so: the last byte that can grow grows.
    kept = beginning.rstrip(b"\xff")
    if not kept:
        return low, len(spellings)
    return low, bisect_left(spellings, kept[:-1] + bytes([kept[-1] + 1]), low)
