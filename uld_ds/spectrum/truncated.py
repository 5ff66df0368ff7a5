"""Spectra of truncated distributions: the k largest probabilities are known, and of the others what they sum to.

What is known of a distribution over V tokens are ``p_1 >= ... >= p_k``. The others, in descending order, are
``q_1 >= q_2 >= ...``: at most ``M = V - k`` of them, none above ``p_k``, with the sum ``u = 1 - (p_1 + ... + p_k)``,
the unknown mass. Where the tail is left out, zeros stand for them, and the distance between what is stored and the
true distribution, ``sum_i |0 - q_i|``, is ``u`` whatever they are: that is the ``error`` of such a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.spectrum.checks import accumulation_dtype
from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.parts import SpectrumParts

MASS_TOLERANCE = 0.02
"""What half precision may add to the sum of a row: log-probabilities in bfloat16 are off by up to 0.4 % each."""


class KnownMass(NamedTuple):
    """The known part of ``N`` truncated distributions, in float64."""

    probabilities: Tensor
    """``[N, k]`` descending; zeros where a row knows fewer, or is padding."""
    unknown_mass: Tensor
    """``[N]``: what the others sum to."""
    least: Tensor
    """``[N]``: the smallest known probability, above which none of the others is; 0 for padding."""
    num_unknown: Tensor
    """``[N]``: tokens that share the unknown mass, at most."""
    moved: Tensor
    """``[N]``: L1 distance that scaling the known ones back moved them."""


def from_top_log_probs(
    log_probs: Tensor, *, vocab_size: int, num_head: int, grid: LevelGrid, name: str = "log_probs"
) -> SpectrumParts:
    """Make the parts of spectra whose tails are unknown: see ``Spectrum.from_top_log_probs``."""
    if num_head < 1:
        raise ValueError(f"num_head must be at least 1, got {num_head}")
    known = known_mass(log_probs, vocab_size=vocab_size, name=name)
    dtype = accumulation_dtype(log_probs.dtype)
    width = known.probabilities.shape[1]
    head = F.pad(known.probabilities, (0, max(0, num_head - width))).to(dtype)
    zeros = head.new_zeros(len(head), grid.num_bins)
    parts = SpectrumParts(
        head,
        zeros,
        zeros.clone(),
        grid=grid,
        error=(known.unknown_mass + known.moved).to(dtype),
        unknown_mass=known.unknown_mass.to(dtype),
    )
    return parts.with_head(num_head) if width > num_head else parts


def known_mass(log_probs: Tensor, *, vocab_size: int, name: str = "log_probs") -> KnownMass:
    """Check ``log_probs [N, k]`` and tell what is known of their distributions.

    Raises:
        ValueError: see ``Spectrum.from_top_log_probs``.
    """
    if log_probs.dim() != 2 or log_probs.shape[1] == 0:
        raise ValueError(f"{name} must have shape [N, k] with k >= 1, got {list(log_probs.shape)}")
    if not log_probs.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {log_probs.dtype}")
    logs = log_probs.double()
    _refuse(torch.isnan(logs).any(1), name, "holds NaN")
    _refuse((logs[:, 1:] > logs[:, :-1]).any(1), name, "is not in descending order")
    p = logs.exp()
    num_known = (p > 0).sum(1)
    _refuse(num_known > vocab_size, name, f"knows more tokens than the {vocab_size} of the vocabulary")
    total = p.sum(1)
    _refuse(total > 1 + MASS_TOLERANCE, name, "sums to more than 1", total)
    alive = num_known > 0
    num_unknown = (vocab_size - num_known) * alive
    least = p.gather(1, (num_known - 1).clamp(min=0)[:, None]).squeeze(1)
    # Rounding can leave more than fits under the smallest known one; or more than nothing for no token at all.
    room = num_unknown * least
    _refuse(
        alive & (1 - total - room > MASS_TOLERANCE), name, f"leaves more than {vocab_size} tokens in all hold", total
    )
    sum_of_all = torch.where(total > 1, total, (total + room).clamp(max=1))
    scale = torch.where(alive, 1 / sum_of_all, torch.zeros_like(total))
    p = p * scale[:, None]
    unknown = (1 - p.sum(1)).clamp(min=0) * alive
    # Nothing is left for no token; a sum that misses 1 by rounding alone is no mass.
    unknown = unknown * (num_unknown > 0)
    return KnownMass(p, unknown, least * scale, num_unknown, (total * (scale - 1)).abs())


def _refuse(bad: Tensor, name: str, why: str, value: Tensor | None = None) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        found = "" if value is None else f" ({float(value[row]):.4f})"
        raise ValueError(f"{name}: row {row} {why}{found}, as {int(bad.sum())} of {bad.numel()} rows")
