"""What a teacher says about an answer: of each of its tokens a spectrum, the probability of the token itself and,
where somebody wants them, the top-k tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uld_ds.batches import SegmentRows
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens


@dataclass(frozen=True)
class TeacherTokens:
    """T answer tokens in order, those that end a turn included; of one example or of several in a row.

    Nothing here depends on the student: its segments choose among these rows, whatever tokenizer it has.
    """

    spectrum: Spectrum
    """T rows: the distribution that predicted each token."""
    log_probs: Tensor
    """[T] float32: natural log-probability, at temperature 1, of the token that stands there."""
    top: TopTokens | None = None
    """T rows: the top-k tokens of the same distributions, in the teacher's vocabulary; None where nobody asked."""

    def __post_init__(self) -> None:
        if tuple(self.log_probs.shape) != (len(self.spectrum),):
            raise ValueError(f"{len(self.spectrum)} spectra for log_probs of shape {list(self.log_probs.shape)}")
        if self.top is not None and len(self.top) != len(self.spectrum):
            raise ValueError(f"{len(self.spectrum)} spectra for {len(self.top)} rows of top-k tokens")

    def __len__(self) -> int:
        return len(self.spectrum)

    def __getitem__(self, rows: slice | Tensor) -> TeacherTokens:
        top = None if self.top is None else self.top[rows]
        return TeacherTokens(self.spectrum[rows], self.log_probs[rows], top)

    @classmethod
    def cat(cls, parts: Sequence[TeacherTokens]) -> TeacherTokens:
        """Rows of several, one after the other; all of one grid and temperature, and of one number of top-k tokens.

        Raises:
            ValueError: they are not.
        """
        spectrum = Spectrum.cat([part.spectrum for part in parts])
        tops = [part.top for part in parts if part.top is not None]
        if tops and len(tops) < len(parts):
            raise ValueError("top-k tokens are there for some of the rows alone")
        log_probs = torch.cat([part.log_probs for part in parts])
        return cls(spectrum, log_probs, TopTokens.cat(tops) if tops else None)

    def segments(self, rows: SegmentRows) -> TeacherSegments:
        """Of S segments among these tokens: the distribution that stands for each, scaled by the tokens before it in
        there, and the probability of its bytes."""
        spectrum = self.spectrum[rows.compared]
        scale = rows.log_scale(self.log_probs[rows.earlier])
        log_probs = rows.log_probs(self.log_probs[rows.members])
        top = None if self.top is None else self.top[rows.compared]
        shifted = spectrum if scale is None else spectrum.shift(scale)
        return TeacherSegments(shifted, log_probs, self.log_probs[rows.compared], top)

    def to(self, device: torch.device | str) -> TeacherTokens:
        """On another device."""
        top = None if self.top is None else self.top.to(device)
        return TeacherTokens(self.spectrum.to(device), self.log_probs.to(device), top)


@dataclass(frozen=True)
class TeacherSegments:
    """What a teacher says about S segments."""

    spectrum: Spectrum
    """S rows."""
    log_probs: Tensor
    """[S] float32: natural log-probability, at temperature 1, of each segment's bytes."""
    first_log_probs: Tensor
    """[S] float32: natural log-probability of the teacher's own token where the segment is compared."""
    top: TopTokens | None = None
    """S rows: the top-k tokens where the segment is compared, not scaled; None where nobody asked."""
