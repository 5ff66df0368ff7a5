"""A log-spaced histogram of probabilities: its levels, and the counts and masses of its bins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_FLOAT32_MANTISSA_BITS = 23
_FLOAT32_EXPONENT_BIAS = 127


@dataclass(frozen=True)
class LevelGrid:
    """A geometric grid of probability levels: the bins that a histogram counts into.

    The bins are ``[0, floor)``, then ``2**mantissa_bits`` per octave up to ``top``, then ``[top, inf)``.

    ``floor = 2**-floor_octave`` and ``top = 2**-top_octave``. The last bin is for what is scaled beyond the grid
    (chain-merged segments); levels within it are not told apart.
    """

    mantissa_bits: int = 5
    floor_octave: int = 36
    top_octave: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.mantissa_bits <= 10:
            raise ValueError(f"mantissa_bits must lie in 0..10, got {self.mantissa_bits}")
        if not 0 <= self.top_octave < self.floor_octave <= 100:
            raise ValueError(
                "octaves must satisfy 0 <= top_octave < floor_octave <= 100, got "
                f"top_octave {self.top_octave}, floor_octave {self.floor_octave}"
            )

    @classmethod
    def below_head(cls, num_head: int, *, mantissa_bits: int = 5) -> LevelGrid:
        """Make a grid for the tail left by the ``num_head`` largest: none of it exceeds ``1 / (num_head + 1)``."""
        return cls(mantissa_bits=mantissa_bits, top_octave=int(math.log2(num_head + 1)))

    @property
    def num_bins(self) -> int:
        """Bins per row, the underflow bin (first) and the unbounded one (last) included."""
        return ((self.floor_octave - self.top_octave) << self.mantissa_bits) + 2

    @property
    def floor(self) -> float:
        """The lowest level told apart from zero."""
        return 2.0**-self.floor_octave

    @property
    def top(self) -> float:
        """The highest level of the grid."""
        return 2.0**-self.top_octave

    @property
    def shift(self) -> int:
        """The right shift that turns a float32 bit pattern into a bin number plus ``offset``."""
        return _FLOAT32_MANTISSA_BITS - self.mantissa_bits

    @property
    def offset(self) -> int:
        """The shifted bit pattern of the underflow bin, which is subtracted to number bins from 0."""
        return ((_FLOAT32_EXPONENT_BIAS - self.floor_octave) << self.mantissa_bits) - 1

    def lower_edges(self, device: torch.device) -> Tensor:
        """Compute the lower edge of every bin, ``[num_bins]`` float32, exact; callers must not change it."""
        return _lower_edges(self, device)

    def widths(self, device: torch.device) -> Tensor:
        """Compute the width of every bin, ``[num_bins]`` float32, 0 for the unbounded last one."""
        return _widths(self, device)


@lru_cache(maxsize=32)
def _lower_edges(grid: LevelGrid, device: torch.device) -> Tensor:
    bits = torch.arange(grid.num_bins, dtype=torch.int32, device=device).add_(grid.offset)
    edges = bits.bitwise_left_shift_(grid.shift).view(torch.float32)
    edges[0].zero_()
    return edges


@lru_cache(maxsize=32)
def _widths(grid: LevelGrid, device: torch.device) -> Tensor:
    edges = _lower_edges(grid, device)
    return torch.cat([edges[1:] - edges[:-1], edges.new_zeros(1)])


class LevelCounts(NamedTuple):
    """A histogram of the probabilities of ``R`` rows on a ``LevelGrid`` of ``B`` bins."""

    counts: Tensor
    """``[R, B]``: probabilities in each bin; always 0 for the underflow bin, as zeros must not matter."""
    masses: Tensor
    """``[R, B]``: the sum of the probabilities in each bin."""
