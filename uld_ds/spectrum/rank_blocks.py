"""Blocks of ranks that a sorted spectrum is cut into, and the levels that a block's mass implies inside it.

Everything that decoding needs is exact integer arithmetic, or additions, products, quotients and square roots of
float64: the same on every machine, and for a row alone or among others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.precision import MAX_CODE, code_of_one, code_of_zero

Array = npt.NDArray[Any]

# Masses in the table, as integers: sums of them are exact, in any order.
_UNIT = 2.0**52
# Blocks are spread over the level grid as this many groups of equal probabilities; a power of two.
_GROUPS = 4
# Below any level that a code stands for; the product of two is still a normal float64.
_TINY = 1e-100


@dataclass(frozen=True)
class BlockMasses:
    """The companding of block masses: linear above ``even_mass``, logarithmic below, smooth between; 0 is 0."""

    step: float
    """Resolution in nats of a mass in the logarithmic part."""
    even_mass: float
    """Mass at which the linear part begins."""

    @property
    def offset(self) -> int:
        """The code that mass 0 would have on the line through the even part of the code."""
        return code_of_zero(self.step)

    @property
    def largest_code(self) -> int:
        """The code of mass 1."""
        return code_of_one(self.step, self.even_mass)

    def code(self, mass: Array) -> Array:
        """Round block masses to their nearest codes, of the shape of ``mass``."""
        x = mass / self.even_mass
        small = 1 + np.log(np.maximum(x, _TINY))
        return np.clip(np.rint(np.where(x >= 1, x, small) / self.step) + self.offset, 0, self.largest_code)

    def table(self) -> Array:
        """Tabulate the mass of every code, [2**16] int64 in units of 2**-52."""
        return _mass_table(self)


@lru_cache(maxsize=8)
def _mass_table(masses: BlockMasses) -> Array:
    x = (np.arange(MAX_CODE + 1) - masses.offset) * masses.step
    table = masses.even_mass * np.where(x >= 1, x, np.exp(np.minimum(x, 1) - 1))
    table[0] = 0
    # No block holds more than 1; codes beyond that do not occur, and must not overflow.
    return np.rint(np.minimum(table, 1) * _UNIT).astype(np.int64)


def block_ends(num_exact: int, rank_ratio: float) -> Iterator[int]:
    """Yield the ranks at which blocks end: every one up to ``num_exact``, then geometrically, without end."""
    yield from range(1, num_exact + 1)
    end = num_exact
    while True:
        end = max(end + 1, round(end * rank_ratio))
        yield end


def blocks_covering(num_exact: int, rank_ratio: float, num_ranks: int) -> Array:
    """List the block ends, [J] int64, until one is not below ``num_ranks`` or ``num_exact``."""
    ends: list[int] = []
    for end in block_ends(num_exact, rank_ratio):
        ends.append(end)
        if end >= max(num_ranks, num_exact):
            break
    return np.array(ends)


@lru_cache(maxsize=64)
def first_blocks(num_exact: int, rank_ratio: float, num_blocks: int) -> Array:
    """List the ends of the first ``num_blocks`` blocks, [num_blocks] int64."""
    return np.array(list(islice(block_ends(num_exact, rank_ratio), num_blocks)), dtype=np.int64)


def block_sizes(ends: Array, support: Array) -> Array:
    """Count the ranks in every block of every row, ``[J, N]``, given ``ends [J]`` and each row's ``support [N]``."""
    bounded = np.minimum(ends[:, None], support[None, :])
    return np.diff(bounded, axis=0, prepend=0)


def spread(masses: Array, sizes: Array, ends: Array, support: Array, grid: LevelGrid) -> tuple[Array, Array]:
    """Spread blocks over the level grid: counts and masses ``[N, B]`` of all but the first, the head's last rank.

    Within a block, levels fall evenly in log-rank from where it meets the block before to where it meets the next.

    Args:
        masses: ``[J, N]`` of each block.
        sizes: ``[J, N]`` ranks in each block; a row's end is a block that has fewer or none.
        ends: ``[J]`` ranks at which whole blocks end.
        support: ``[N]`` ranks of each row.
        grid: the levels.
    """
    rows = len(support)
    block, row = np.nonzero(sizes[1:])  # [P] each: the P blocks that are not empty, as all below until the end
    level = np.maximum(masses / np.maximum(sizes, 1), _TINY)  # [J, N]
    goes_on = np.append(sizes[2:] > 0, np.zeros((1, rows), bool), axis=0)[block, row]
    here, before = level[block + 1, row], level[block, row]
    top = np.sqrt(before * here)
    after = level[np.minimum(block + 2, len(level) - 1), row]
    bottom = np.where(goes_on, np.sqrt(here * after), here * here / top)
    first, last = ends[block].astype(float), np.minimum(ends[block + 1], support[row]).astype(float)

    group_sizes, levels = np.empty((_GROUPS, len(row))), np.empty((_GROUPS, len(row)))
    growth, half_fall = _root(last / first, _GROUPS), _root(bottom / top, 2 * _GROUPS)
    begin, middle, fall = first, top * half_fall, half_fall * half_fall
    total = np.zeros(len(row))
    for group in range(_GROUPS):
        end = last if group == _GROUPS - 1 else begin * growth
        group_sizes[group], levels[group] = end - begin, middle
        total += group_sizes[group] * middle
        begin, middle = end, middle * fall
    levels *= masses[block + 1, row] / total
    bins = (levels.astype(np.float32).view(np.int32) >> grid.shift) - grid.offset
    flat = (np.clip(bins, 0, grid.num_bins - 1) + grid.num_bins * row).ravel()  # [_GROUPS * P]
    counts = np.bincount(flat, group_sizes.ravel(), rows * grid.num_bins).reshape(rows, grid.num_bins)
    tail = np.bincount(flat, (group_sizes * levels).ravel(), rows * grid.num_bins).reshape(rows, grid.num_bins)
    counts[:, 0] = 0
    return counts, tail


def _root(x: Array, degree: int) -> Array:
    """Take the root of a power-of-two ``degree``: square roots are the same on every machine, powers are not."""
    while degree > 1:
        x, degree = np.sqrt(x), degree // 2
    return x
