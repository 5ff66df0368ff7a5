"""A picture that stands alone of shares of a whole over the steps, one above the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from uld_ds.reporting.charts import ALONE, Grid
from uld_ds.reporting.rulers import Axis, Ruler
from uld_ds.reporting.templates import render

_MOST_COLUMNS = 240


@dataclass(frozen=True)
class _Area:
    """A layer of the stack, drawn with all that is below it."""

    name: str
    told: str
    outline: str


def stack_picture(title: str, unit: str, steps: Sequence[int], shares: Mapping[str, Sequence[float]]) -> str:
    """Draw shares over the steps as a stack of areas, as the text of an SVG file.

    Args:
        title: text above the picture.
        unit: unit of the vertical axis.
        steps: steps in order, at least one; counts on the horizontal axis.
        shares: from bottom to top, at most eight: per name its percentage at every step. They add up to 100.
    """
    edges = _edges(steps)
    across = ALONE.across(Axis("optimizer step", low=edges[0], high=edges[-1], whole=True), edges)
    up = ALONE.up(Axis(unit, low=0.0, high=100.0), [])
    layers = [_thinned(values) for values in shares.values()]
    areas = [
        _Area(name, f"{name} {sum(values) / len(values):.1f}", _outline(across, up, edges, level))
        for (name, values), level in zip(shares.items(), accumulate(layers, _sums), strict=True)
    ]
    return render("stack_picture.svg.j2", title=title, frame=ALONE, lines=Grid.of(ALONE, across, up), areas=areas)


def _edges(steps: Sequence[int]) -> list[float]:
    """Place the edges of the columns, one more than there are columns, half way between two steps."""
    between = [(one + other) / 2 for one, other in pairwise(steps)]
    edges = [steps[0] - 0.5, *between, steps[-1] + 0.5]
    return [*edges[: -1 : _size(len(steps))], edges[-1]]


def _thinned(values: Sequence[float]) -> list[float]:
    """Average as many neighbors as a column stands for."""
    size = _size(len(values))
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(group) / len(group) for group in groups]


def _size(columns: int) -> int:
    return math.ceil(columns / _MOST_COLUMNS)


def _sums(below: Sequence[float], layer: Sequence[float]) -> list[float]:
    return [one + other for one, other in zip(below, layer, strict=True)]


def _outline(across: Ruler, up: Ruler, edges: Sequence[float], level: Sequence[float]) -> str:
    """Write the outline of all below a level, as stairs from left to right; lower areas are drawn over it."""
    stairs = "".join(f"V{up.at(high):g}H{across.at(end):g}" for high, end in zip(level, edges[1:], strict=True))
    return f"M{across.at(edges[0]):g} {up.at(0):g}{stairs}V{up.at(0):g}Z"
