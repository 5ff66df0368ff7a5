"""Micro-batches and teacher outputs put together by hand, with only what a loss reads."""

from __future__ import annotations

import torch
from torch import Tensor

from uld_ds.batches import JudgedBatch, SegmentRows, SideBatch
from uld_ds.losses.term import Compared
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teacher_outputs import TeacherSegments


def micro_batch_of(student: SideBatch, segments: SegmentRows) -> JudgedBatch:
    """One example whose segments are the same rows on both sides."""
    nothing = torch.zeros(len(segments), dtype=torch.long)
    return JudgedBatch(student, segments, segments, nothing)


def teacher_of(spectrum: Spectrum, log_probs: Tensor | None = None, top: TopTokens | None = None) -> TeacherSegments:
    """A teacher's outputs for segments of one token each; log-probabilities of 0 where nobody looks at them."""
    known = torch.zeros(len(spectrum)) if log_probs is None else log_probs
    return TeacherSegments(spectrum, known, known, top)


def compared_of(
    top: TopTokens,
    log_probs: Tensor,
    first_log_probs: Tensor,
    student_ids: Tensor,
    *,
    next_rows: Tensor | None = None,
    num_rows: int | None = None,
    one_to_one: Tensor | None = None,
) -> Compared:
    """What identity terms compare, of segments of one token each with no row after them where nothing else is said."""
    size = len(top)
    return Compared(
        top,
        log_probs,
        first_log_probs,
        student_ids,
        torch.full((size,), -1) if next_rows is None else next_rows,
        size if num_rows is None else num_rows,
        torch.ones(size, dtype=torch.bool) if one_to_one is None else one_to_one,
    )
