"""Spectra of truncated distributions: the k largest probabilities are known, and of the others what they sum to.

What is known of a distribution over V tokens are ``p_1 >= ... >= p_k``. The others, in descending order, are
``q_1 >= q_2 >= ...``: at most ``V - k`` of them, none above ``p_k``, with the sum ``u = 1 - (p_1 + ... + p_k)``, the
unknown mass. In their place stands an estimate ``r`` (``uld_ds.spectrum.tail_shapes``), and ``error`` is the most that
``sum_i |r_i - q_i|`` can be. Where the tail is left out, that is ``u``, whatever the others are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.spectrum.checks import accumulation_dtype
from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.parts import SpectrumParts
from uld_ds.spectrum.rank_blocks import Array
from uld_ds.spectrum.tail_shapes import Blocks, Tail, TailShape, estimate, least_overlap

DEFAULT_TAIL: TailShape = "bent"
"""Measured against the others by ``benchmarks/truncated.py``."""
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
    num_known: Tensor
    """``[N]``: tokens whose probabilities are known."""
    moved: Tensor
    """``[N]``: L1 distance that scaling the known ones back moved them."""


def from_top_log_probs(
    log_probs: Tensor,
    *,
    vocab_size: int,
    num_head: int,
    grid: LevelGrid,
    tail: TailShape = DEFAULT_TAIL,
    name: str = "log_probs",
) -> SpectrumParts:
    """Make the parts of spectra whose tails are unknown: see ``Spectrum.from_top_log_probs``."""
    if num_head < 1:
        raise ValueError(f"num_head must be at least 1, got {num_head}")
    known = known_mass(log_probs, vocab_size=vocab_size, name=name)
    unknown, least = known.unknown_mass.cpu().numpy(), known.least.cpu().numpy()
    parts = parts_of_known(known, num_head, grid, accumulation_dtype(log_probs.dtype))
    error = known.moved.cpu().numpy() + unknown
    num_knowns = known.num_known.cpu().numpy()
    for num_known in sorted({*num_knowns.tolist()} - {0}):
        rows = np.flatnonzero(num_knowns == num_known)
        of_rows = estimate(tail, unknown[rows], least[rows], num_known, vocab_size)
        add_tail(parts, rows, of_rows.levels, of_rows.blocks, num_known)
        error[rows] += excess(of_rows, unknown[rows], least[rows])
    parts.error = torch.from_numpy(error).to(parts.head)
    return parts


def parts_of_known(known: KnownMass, num_head: int, grid: LevelGrid, dtype: torch.dtype) -> SpectrumParts:
    """Make the parts of spectra that hold what is known and nothing else; their ``error`` is not there yet."""
    width = known.probabilities.shape[1]
    head = F.pad(known.probabilities, (0, max(0, num_head - width))).to(dtype)
    zeros = head.new_zeros(len(head), grid.num_bins)
    unknown = known.unknown_mass.to(dtype)
    parts = SpectrumParts(head, zeros, zeros.clone(), grid=grid, unknown_mass=unknown)
    return parts.with_head(num_head) if width > num_head else parts


def excess(tail: Tail, unknown: Array, least: Array) -> Array:
    """Bound by how much an estimated tail may be further from the true one than nothing is: [N]."""
    estimated: Array = (tail.levels * tail.blocks.sizes).sum(axis=1)
    return estimated - 2 * least_overlap(tail, unknown, least)


def add_tail(parts: SpectrumParts, rows: Array, levels: Array, blocks: Blocks, num_known: int) -> None:
    """Put tails beyond ``num_known`` ranks into some rows of ``parts``.

    Args:
        parts: Spectra without those tails; changed.
        rows: [R] numbers of the rows.
        levels: [R, J] level of every block.
        blocks: The blocks.
        num_known: Ranks before the first block.
    """
    if not levels.any():
        return
    grid = parts.grid
    in_head = np.clip(parts.num_head - num_known, 0, blocks.ends[-1])
    head = np.repeat(levels, np.diff(np.minimum(blocks.ends, in_head), prepend=0), axis=1)  # [R, in_head]
    sizes = blocks.sizes - np.diff(np.minimum(blocks.ends, in_head), prepend=0)  # [J]: of each block, in the tail
    outside = np.flatnonzero(sizes)
    sizes, levels = sizes[outside], levels[:, outside]
    bins = (levels.astype(np.float32).view(np.int32) >> grid.shift) - grid.offset
    flat = (np.clip(bins, 0, grid.num_bins - 1) + grid.num_bins * np.arange(len(rows))[:, None]).ravel()
    total, shape = len(rows) * grid.num_bins, (len(rows), grid.num_bins)
    counts = np.bincount(flat, np.broadcast_to(sizes, levels.shape).ravel(), total).reshape(shape)
    masses = np.bincount(flat, (levels * sizes).ravel(), total).reshape(shape)
    # Nothing is counted below the floor, and no rank that holds nothing.
    counts[:, 0] = 0
    where = torch.from_numpy(rows).to(parts.head.device)
    if in_head > 0:
        parts.head[where, num_known : num_known + head.shape[1]] = torch.from_numpy(head).to(parts.head)
    parts.counts[where] += torch.from_numpy(counts).to(parts.counts)
    parts.masses[where] += torch.from_numpy(masses).to(parts.masses)


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
    return known_of(logs.exp(), vocab_size=vocab_size, name=name)


def known_of(
    p: Tensor, *, vocab_size: int, tolerance: float = MASS_TOLERANCE, name: str = "probabilities"
) -> KnownMass:
    """Check ``p [N, k]``, float64 probabilities in descending order, and tell what is known; see ``known_mass``."""
    _refuse((p[:, 1:] > p[:, :-1]).any(1), name, "is not in descending order")
    num_known = (p > 0).sum(1)
    _refuse(num_known > vocab_size, name, f"knows more tokens than the {vocab_size} of the vocabulary")
    total = p.sum(1)
    _refuse(total > 1 + tolerance, name, "sums to more than 1", total)
    alive = num_known > 0
    num_unknown = (vocab_size - num_known) * alive
    least = p.gather(1, (num_known - 1).clamp(min=0)[:, None]).squeeze(1)
    # Rounding can leave more than fits under the smallest known one; or more than nothing for no token at all.
    room = num_unknown * least
    _refuse(alive & (1 - total - room > tolerance), name, f"leaves more than {vocab_size} tokens in all hold", total)
    sum_of_all = torch.where(total > 1, total, (total + room).clamp(max=1))
    scale = torch.where(alive, 1 / sum_of_all, torch.zeros_like(total))
    unknown = torch.where(total + room < 1, room * scale, (1 - total).clamp(min=0)) * alive
    return KnownMass(p * scale[:, None], unknown, least * scale, num_known, (total * (scale - 1)).abs())


def _refuse(bad: Tensor, name: str, why: str, value: Tensor | None = None) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        found = "" if value is None else f" ({float(value[row]):.4f})"
        raise ValueError(f"{name}: row {row} {why}{found}, as {int(bad.sum())} of {bad.numel()} rows")
