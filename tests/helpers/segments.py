"""Micro-batches and teacher outputs put together by hand, with only what a loss reads."""

from __future__ import annotations

import torch
from torch import Tensor

from uld_ds.batches import JudgedBatch, SegmentRows, SideBatch
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
