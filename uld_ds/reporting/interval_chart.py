"""A chart of values with their intervals, one line each, as SVG inside a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from uld_ds.reporting.charts import WIDTH
from uld_ds.reporting.rulers import Axis, Ruler
from uld_ds.reporting.templates import fragment

_LINE, _TOP, _BOTTOM, _SIDE = 34, 6, 26, 12


@dataclass(frozen=True)
class Interval:
    """A named value, and the interval that it may lie in."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> list[float]:
        """Both ends of the interval, empty where they are not known."""
        return [] if self.low is None or self.high is None else [self.low, self.high]

    @property
    def told(self) -> str:
        """Value and interval as text."""
        return f"{self.value:.4g}" + (f" [{self.low:.4g}, {self.high:.4g}]" if self.ends else "")


@dataclass(frozen=True)
class _Row:
    """An interval on the picture."""

    name: str
    told: str
    y: int
    value: float
    ends: list[float]


def interval_chart(title: str, intervals: Sequence[Interval], *, note: str = "") -> Markup:
    """Draw a dot per value and a line for its interval, as a figure of a page; empty text for no values.

    Args:
        title: text above the figure.
        intervals: values from top to bottom.
        note: text below the title.
    """
    if not intervals:
        return Markup()
    ruler = _ruler([end for interval in intervals for end in (interval.value, *interval.ends)])
    rows = [
        _Row(i.name, i.told, _TOP + _LINE * place + 24, ruler.at(i.value), [ruler.at(end) for end in i.ends])
        for place, i in enumerate(intervals)
    ]
    return fragment(
        "interval_chart.html.j2",
        title=title,
        note=note,
        width=WIDTH,
        height=_TOP + _LINE * len(rows) + _BOTTOM,
        side=_SIDE,
        rows=rows,
        low=f"{ruler.low:.4g}",
        high=f"{ruler.high:.4g}",
    )


def _ruler(values: Sequence[float]) -> Ruler:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or max(abs(high) * 0.05, 0.5)
    return Ruler.over(Axis("", low=low - margin, high=high + margin), values, _SIDE, WIDTH - _SIDE)
