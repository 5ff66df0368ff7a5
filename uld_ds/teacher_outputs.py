"""Teacher outputs of an answer: per token a spectrum, the token's own log-probability and, if wanted, top-k tokens."""

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
    """Teacher outputs of T answer tokens in order, of one example or of several in a row.

    Tokens that end a turn are among them. Nothing here depends on the student: its segments choose among these rows,
    whatever tokenizer it has.
    """

    spectrum: Spectrum
    """T rows: the distribution that predicted each token."""
    log_probs: Tensor
    """[T] float32: natural log-probability, at temperature 1, of the token that stands there."""
    top: TopTokens | None = None
    """T rows: top-k tokens of the same distributions, in the teacher's vocabulary; None where nobody asked for them."""

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
        """Concatenate teacher outputs along the tokens.

        Raises:
            ValueError: there are none, or they differ in grid, head size, temperature or number of top-k tokens, or
                only some have those.
        """
        spectrum = Spectrum.cat([part.spectrum for part in parts])
        tops = [part.top for part in parts if part.top is not None]
        if tops and len(tops) < len(parts):
            raise ValueError("top-k tokens are there for some of the rows alone")
        log_probs = torch.cat([part.log_probs for part in parts])
        return cls(spectrum, log_probs, TopTokens.cat(tops) if tops else None)

    def segments(self, rows: SegmentRows) -> TeacherSegments:
        """Select the teacher outputs of S segments among these tokens.

        Of each: the distribution that stands for it, scaled by the probability of the tokens before it in the segment,
        and the log-probability of its bytes.
        """
        spectrum = self.spectrum[rows.compared]
        scale = rows.log_scale(self.log_probs[rows.earlier])
        log_probs = rows.log_probs(self.log_probs[rows.members])
        top = None if self.top is None else self.top[rows.compared]
        shifted = spectrum if scale is None else spectrum.shift(scale)
        return TeacherSegments(shifted, log_probs, self.log_probs[rows.compared], top)

    def to(self, device: torch.device | str) -> TeacherTokens:
        """Move the teacher outputs to another device."""
        top = None if self.top is None else self.top.to(device)
        return TeacherTokens(self.spectrum.to(device), self.log_probs.to(device), top)


@dataclass(frozen=True)
class TeacherSegments:
    """Teacher outputs of S segments."""

    spectrum: Spectrum
    """S rows: the distribution that stands for each segment, scaled by the tokens before it with ``merge: chain``."""
    log_probs: Tensor
    """[S] float32: natural log-probability, at temperature 1, of each segment's bytes."""
    first_log_probs: Tensor
    """[S] float32: natural log-probability of the teacher's own token where the segment is compared."""
    top: TopTokens | None = None
    """S rows: the top-k tokens where the segment is compared, not scaled; None where nobody asked."""
