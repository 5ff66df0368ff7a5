"""The area between two counting functions on a grid, its error bound, and the sign of their difference.

``W1(p, q) = integral |N_p(t) - N_q(t)| dt`` with ``N_p(t) = #{i : p_i > t}``. Write ``f = N_p - N_q``. Counts and
masses by bin give ``f`` at both edges of every bin and ``integral f`` over it, exactly. Where ``f`` keeps its sign
inside a bin, ``|integral f|`` is the bin's share, exactly; only bins in which the sign may change need a model
(a parabola through what is known) and carry an error, which is bounded here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from uld_ds.spectrum.histogram import LevelCounts, LevelGrid


class Areas(NamedTuple):
    """The comparison of two spectra's tails on one grid, per row."""

    distance: Tensor
    """``[R]``: the area between the counting functions."""
    bound: Tensor | None
    """``[R]``: ``|distance - true area|`` is at most this, rounding aside; None when not asked for."""
    root: Tensor
    """``[R, B]``: ``sign(root) * sign(level - |root|)`` is the sign of ``N_p - N_q`` at a level of that bin."""


def compare(p: LevelCounts, q: LevelCounts, grid: LevelGrid, *, want_bound: bool = True) -> Areas:
    """Compute the area between the counting functions of ``p`` and ``q`` (``[R, B]`` each, the same ``grid``).

    ``want_bound=False`` skips the error bound.
    """
    lower, width = grid.lower_edges(p.counts.device), grid.widths(p.counts.device)  # [B] each
    counts = p.counts - q.counts  # [R, B], as all that follows until it is summed
    f_low = counts.flip(-1).cumsum(-1).flip(-1)
    f_high = f_low - counts
    # integral of N over a bin = (count above it) * width + what its own members reach above its lower edge
    area = f_high * width + (p.masses - q.masses) - counts * lower
    size = area.abs()
    edges = f_low * f_high
    crosses = edges < 0
    root, modeled = _parabola(f_low, f_high, area, width)
    estimate = torch.where(crosses, modeled.maximum(size), size)

    # Beneath every level of the bin, so that the look-up gives the bin's one sign. Counts are not rounded, areas are.
    beneath = (0.5 * lower).clamp_min(0.5**20 * grid.floor)
    one_sign = torch.where(edges > 0, f_low, area).sign() * beneath
    # f_low is N_p - N_q at the bottom of the bin: above the root the sign is f_high's.
    crossing = f_high.sign() * (lower + root * width)
    bound = _error(p, q, f_low, f_high, area, estimate, lower, width) if want_bound else None
    return Areas(estimate.sum(-1), bound, torch.where(crosses, crossing, one_sign))


def _error(
    p: LevelCounts,
    q: LevelCounts,
    f_low: Tensor,
    f_high: Tensor,
    area: Tensor,
    estimate: Tensor,
    lower: Tensor,
    width: Tensor,
) -> Tensor:
    """Bound how far ``estimate [R, B]`` can be from ``integral |f|``, summed over the bins: ``[R]``."""
    # Inside the bin f moves between these: all of p's members reached and none of q's, and the reverse.
    f_max, f_min = f_high + p.counts, f_high - q.counts
    # |f| <= |f at an edge| + the members met on the way from it; integrated, the members' share is a mass.
    above = (p.masses - p.counts * lower) + (q.masses - q.counts * lower)
    from_top = f_high.abs() * width + above
    from_bottom = f_low.abs() * width + (p.counts + q.counts) * width - above
    # integral |f| = 2 * integral f+ - area = 2 * integral f- + area
    by_positive = 2 * f_max.clamp_min(0) * width - area
    by_negative = area - 2 * f_min.clamp_max(0) * width
    most = torch.minimum(torch.minimum(from_top, from_bottom), torch.minimum(by_positive, by_negative))
    # The first bin has no counts and the last no width: there only the way from the top holds.
    most[..., 0], most[..., -1] = from_top[..., 0], from_top[..., -1]
    # integral |f| is at least |integral f|; where f cannot change its sign, most is the same and the error is 0.
    return torch.maximum(estimate - area.abs(), most - estimate).clamp_min(0).sum(-1)


def _parabola(f_low: Tensor, f_high: Tensor, area: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a parabola to both edge values and the known integral; return its root in [0, 1] and ``integral |f|``.

    Meaningful only where the edge values differ in sign; there the parabola has exactly one root in the bin.
    """
    mean = area / width.clamp_min(torch.finfo(width.dtype).tiny)
    step = f_high - f_low
    bend = 6 * (mean - 0.5 * (f_low + f_high))
    # f(x) = f_low + slope * x - bend * x**2; this form of the root survives bend -> 0.
    slope = step + bend
    discriminant = (slope.square() + 4 * bend * f_low).clamp_min(0)
    denominator = f_low.sign() * discriminant.sqrt() - slope
    root = (2 * f_low / torch.where(denominator == 0, torch.ones_like(denominator), denominator)).clamp(0, 1)
    below = root * (f_low + root * (0.5 * step + bend * (0.5 - root / 3)))
    return root, (below.abs() + (mean - below).abs()) * width
