"""Outcomes that two vocabularies share: sets of tokens whose beginnings are all that their bytes tell apart.

Where the teacher writes ``the``, ``ory`` and the student ``theory``, the teacher's probability of ``the`` is that of
``the`` and of all words for which it has no token of their own. What is told apart is then only whether the student
writes one of ``the``, ``theory``, ... Each token is joined with the longest token of the other side that its bytes
begin with; what is joined, directly or through others, is one outcome. Between equal vocabularies each token is its
own.
"""

from __future__ import annotations

import numpy as np

from uld_ds.tokenization.vocabulary import Ints

NONE = -1
"""Number that stands for "no token" and "no outcome"."""


def shared_outcomes(forward: Ints, backward: Ints) -> tuple[Ints, Ints]:
    """Give each outcome of two vocabularies a number.

    Args:
        forward: [V_t] the student's token with the longest bytes that each of the teacher's tokens begins with, or -1.
        backward: [V_s] the teacher's token with the longest bytes that each of the student's tokens begins with, or -1.

    Returns:
        [V_s] the outcome of each of the student's tokens, from 0 without a gap, and [V_t] that of each of the
        teacher's tokens, or -1 where no token of the student is part of it.
    """
    num_teacher, num_student = len(forward), len(backward)
    every = np.arange(num_teacher + num_student)
    after = np.concatenate([np.where(forward >= 0, forward + num_teacher, NONE), backward])
    after = np.where(after >= 0, after, every)
    # Bytes never get longer from one to the next, so that the only ways back are those between twins: one of each two
    # is the end.
    is_twin = (after[after] == every) & (after != every)
    after = np.where(is_twin & (every >= num_teacher), every, after)
    while not np.array_equal(after[after], after):
        after = after[after]
    ends, of_student = np.unique(after[num_teacher:], return_inverse=True)
    place = np.searchsorted(ends, after[:num_teacher]).clip(max=max(len(ends) - 1, 0))
    found = ends[place] == after[:num_teacher] if len(ends) else np.zeros(num_teacher, bool)
    return of_student.astype(np.int64), np.where(found, place, NONE).astype(np.int64)
