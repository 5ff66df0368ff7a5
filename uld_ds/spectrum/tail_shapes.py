"""Estimates of an unknown tail: how its mass may lie on the ranks beyond the last known one, and what that may cost.

Ranks ``k + 1 ... V`` are cut into blocks whose ends grow by 5 %; an estimate gives every block a level, between 0 and
the last known probability ``c``, falling, and all of them sum to the unknown mass ``u``:

===============  =====================================================================================================
``left_out``     nothing
``flat``         ``u / (V - k)`` on every rank: the flattest there can be
``as_fits``      ``c`` on as many ranks as fit, then nothing: the steepest there can be
``geometric``    ``c exp(-a (i - k) / k)`` at rank ``i``, with the one ``a`` that sums to ``u``
``power``        ``c (i / k) ** -a``, likewise
``bent``         ``min(c, c (i / k) ** -(a + CURVATURE ln(i / k)))``, likewise: a parabola in log-rank
===============  =====================================================================================================

``a`` is a multiple of 1/256: of those the largest with which the levels hold at least ``u``; then they are scaled to
it, which never lifts them above ``c``. Levels come out of a table of exponentials that were rounded to integers, so
that the same log-probabilities give the same bits on any machine.

**The bound.** True tails ``q`` are the decreasing sequences in ``[0, c]`` on ``M = V - k`` ranks that sum to ``u``. For
an estimate ``r`` that sums to ``s``: ``sum |r_i - q_i| = s + u - 2 sum min(r_i, q_i)``, so what is wanted is the least
overlap ``O(q) = sum min(r_i, q_i)``. ``q`` is a mean of steps, ``q = sum_L w_L step_L`` with ``step_L = u / L`` on the
first ``L`` ranks and ``w_L = L (q_L - q_(L+1)) / u``; the weights are not negative and sum to 1. ``O`` is concave:
``O(q) >= sum_L w_L o(L)`` with ``o(L) = O(step_L)``. That ``q_1 <= c`` reads ``sum_L w_L / L <= c / u``; so for any
``t >= 0``

    ``O(q) >= sum_L w_L (o(L) + t (1 / L - c / u)) >= min_L (o(L) + t (1 / L - c / u))``

and the largest of these over a few ``t`` is taken. For ``L`` in a block ``(L0, L1]``, ``o(L)`` is at least the overlap
of ``r`` with ``u / L1`` on ``L0 + 1`` ranks. The two extremes are among the steps: ``L = M`` is the flattest tail,
``L = u / c`` the steepest; the worst for a curved ``r`` lies between them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from uld_ds.spectrum.rank_blocks import Array

TailShape = Literal["left_out", "flat", "as_fits", "geometric", "power", "bent"]
SHAPES: tuple[TailShape, ...] = get_args(TailShape)
CURVATURE = 0.1
"""How much steeper a ``bent`` tail is for every factor e of rank: measured, see ``docs/spectrum-store.md``."""
_RATIO = 1.05
# Exponents are in units of this many nats; what lies further down than the table is nothing.
_UNIT, _MAX_NATS = 2.0**-12, 40
_TABLE_UNIT = 2.0**-52
# Log-ranks are multiples of this: what a logarithm's last bit decides must not reach the levels.
_LOG_UNIT = 2.0**-20
_CODES_PER_UNIT, _CODE_OF_ZERO, _MAX_CODE = 256, 2048, 0xFFFF
# Multipliers of the bound's constraint, in units of u * u / c.
_MULTIPLIERS = (0.0, *(2.0 ** (step / 2) for step in range(-12, 7)))


class Blocks(NamedTuple):
    """Blocks of the unknown ranks beyond ``k`` known ones."""

    ends: Array
    """[J] int64: unknown ranks up to and with each block; the last is all of them."""
    sizes: Array
    """[J] int64."""
    log_rank: Array
    """[J] float64: log of the middle rank over k, in whole ``_LOG_UNIT``."""
    rank: Array
    """[J] float64: ranks from k to the block's middle, over k."""


class Tail(NamedTuple):
    """Estimated tails of ``N`` rows."""

    levels: Array
    """[N, J] float64: the level of every block, scaled to the unknown mass."""
    codes: Array
    """[N] uint16: the fitted exponents; 0 for shapes that have none."""
    blocks: Blocks


def estimate(shape: TailShape, unknown: Array, least: Array, num_known: int, vocab_size: int) -> Tail:
    """Estimate the tails of rows that know ``num_known`` probabilities.

    Args:
        shape: How they fall.
        unknown: [N] float64 unknown masses.
        least: [N] float64 smallest known probabilities.
        num_known: Known probabilities per row.
        vocab_size: Tokens of the vocabulary.
    """
    blocks = blocks_beyond(num_known, vocab_size)
    codes = np.zeros(len(unknown), np.uint16)
    if shape in ("geometric", "power", "bent"):
        codes = _fit(shape, unknown, least, blocks)
    return Tail(levels_of(shape, codes, unknown, least, blocks), codes, blocks)


@lru_cache(maxsize=64)
def blocks_beyond(num_known: int, vocab_size: int) -> Blocks:
    """Cut the ranks ``num_known + 1 ... vocab_size`` into blocks; there are none where all are known."""
    ends, end = [], num_known
    while end < vocab_size:
        end = min(max(end + 1, round(end * _RATIO)), vocab_size)
        ends.append(end)
    last = np.array(ends, np.int64)
    first = np.concatenate([[num_known], last[:-1]]) + 1 if ends else last
    middle = np.sqrt(first * last.astype(float))
    log_rank = np.rint(np.log(middle / max(num_known, 1)) / _LOG_UNIT) * _LOG_UNIT
    return Blocks(last - num_known, last - first + 1, log_rank, (middle - num_known) / max(num_known, 1))


def levels_of(shape: TailShape, codes: Array, unknown: Array, least: Array, blocks: Blocks) -> Array:
    """Compute the levels [N, J] of fitted tails: arguments as for ``estimate``, ``codes`` as it found them."""
    num_ranks = int(blocks.ends[-1]) if len(blocks.ends) else 0
    if shape == "left_out" or num_ranks == 0:
        return np.zeros((len(unknown), len(blocks.ends)))
    if shape == "flat":
        return np.repeat(unknown[:, None] / num_ranks, len(blocks.ends), axis=1)
    if shape == "as_fits":
        held = np.minimum(least[:, None] * blocks.ends, unknown[:, None])  # [N, J]
        return np.diff(held, axis=1, prepend=0.0) / blocks.sizes
    relative = _fall(shape, codes, blocks)
    # In the order of ranks, one after the other: a sum by pairs depends on how many there are.
    total = (relative * blocks.sizes).cumsum(axis=1)[:, -1]
    height = np.divide(unknown, total, out=np.zeros_like(unknown), where=total > 0)
    return relative * np.minimum(height, least)[:, None]


def least_overlap(tail: Tail, unknown: Array, least: Array) -> Array:
    """Bound from below what an estimated tail has in common with whatever the true one is: [N] (see above)."""
    ends, sizes = tail.blocks.ends, tail.blocks.sizes
    if len(ends) == 0 or len(unknown) == 0:
        return np.zeros(len(unknown))
    edges = np.concatenate([[0], ends])
    below = np.concatenate([np.zeros((len(unknown), 1)), (tail.levels * sizes).cumsum(axis=1)], axis=1)  # [N, J + 1]
    step = unknown[:, None] / ends  # [N, J]: the level of the longest step of each block
    # As levels fall, those that reach a step are the first ones.
    reached = _num_reaching(tail.levels, step)
    first = np.minimum(edges[:-1] + 1, ends)  # [J]: the shortest step of each block
    held = below[:, :-1] + tail.levels * (first - edges[:-1])  # [N, J]: r's mass on that many ranks
    ranks = np.minimum(edges[reached], first)
    overlap = step * ranks + np.maximum(held - np.take_along_axis(below, reached, axis=1), 0) * (ranks < first)
    ratio = np.divide(least, unknown, out=np.ones_like(least), where=unknown > 0)  # [N]: c / u
    slack = 1 / ends - ratio[:, None]  # [N, J]
    unit = np.divide(unknown, ratio, out=np.zeros_like(unknown), where=ratio > 0)
    bounds = [(overlap + (factor * unit)[:, None] * slack).min(axis=1) for factor in _MULTIPLIERS]
    return np.clip(np.max(bounds, axis=0), 0, unknown)


def _num_reaching(levels: Array, step: Array) -> Array:
    """Count the levels of each row that are at least each ``step``, both falling: [N, J] int64."""
    rows, width = levels.shape
    merged = np.concatenate([-levels, -step], axis=1)  # both ascending
    order = merged.argsort(axis=1, kind="stable")
    is_level = order < width
    before = is_level.cumsum(axis=1)
    counts = np.empty((rows, 2 * width), np.int64)
    np.put_along_axis(counts, order, before, axis=1)
    return counts[:, width:]


def _fit(shape: TailShape, unknown: Array, least: Array, blocks: Blocks) -> Array:
    """Find the largest code with which levels below ``least`` hold at least the unknown mass: [N] uint16."""
    wanted = np.divide(unknown, least, out=np.zeros_like(unknown), where=least > 0)
    low, high = np.zeros(len(unknown), np.int64), np.full(len(unknown), _MAX_CODE + 1, np.int64)
    if len(blocks.ends) == 0:
        return low.astype(np.uint16)
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = (_fall(shape, middle, blocks) * blocks.sizes).sum(axis=1) >= wanted
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return low.astype(np.uint16)


def _fall(shape: TailShape, codes: Array, blocks: Blocks) -> Array:
    """Look up the levels [N, J] of the codes ``[N]``, relative to the last known probability, at most 1."""
    along, bend = _coordinates(shape, blocks)
    slope = (codes.astype(np.int64) - _CODE_OF_ZERO) / _CODES_PER_UNIT
    nats = slope[:, None] * along + bend
    where = np.rint(nats / _UNIT)
    table = _exponentials()
    return table[np.clip(where, 0, len(table) - 1).astype(np.int64)]


def _coordinates(shape: TailShape, blocks: Blocks) -> tuple[Array, Array | float]:
    if shape == "geometric":
        return blocks.rank, 0.0
    return blocks.log_rank, CURVATURE * blocks.log_rank * blocks.log_rank if shape == "bent" else 0.0


@lru_cache(maxsize=1)
def _exponentials() -> Array:
    """Tabulate exp(-n * _UNIT), the last of which is 0: [n] float64."""
    table = np.rint(np.exp(-np.arange(round(_MAX_NATS / _UNIT) + 1) * _UNIT) / _TABLE_UNIT) * _TABLE_UNIT
    table[-1] = 0
    return table
