"""Charts as SVG inside a page: no script, colours from the page's own variables, lines told apart without colour, too.

A series has a colour, a dash and, where its points are few, a marker of its own; the legend shows its name beside a
sample of what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Scale = Literal["linear", "log"]
Point = tuple[float, float]

WIDTH, HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 42
_MOST_POINTS = 240
_FEW_POINTS = 24
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
_MARKERS = ("circle", "square", "diamond", "triangle")
_CORNERS: dict[str, list[Point]] = {
    "square": [(-3, -3), (3, -3), (3, 3), (-3, 3)],
    "diamond": [(0, -4), (4, 0), (0, 4), (-4, 0)],
    "triangle": [(0, -4), (3.6, 3), (-3.6, 3)],
}


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    points: Sequence[Point]
    style: int
    """Which colour, dash and marker: the same one for the same thing in every chart. From 4 on, colours come with other
    dashes; 16 are told apart."""
    markers: bool | None = None
    """On its points; by default where they are few."""

    @property
    def colour(self) -> int:
        """Of the page's four; the marker goes with it."""
        return self.style % len(_MARKERS)

    @property
    def is_marked(self) -> bool:
        """Whether markers are drawn."""
        return len(self.points) <= _FEW_POINTS if self.markers is None else self.markers

    @property
    def dash(self) -> str:
        """As SVG has it; empty for a whole line."""
        return _DASHES[(self.style + self.style // len(_MARKERS)) % len(_DASHES)]


@dataclass(frozen=True)
class Axis:
    """One direction of a chart."""

    title: str
    scale: Scale = "linear"
    low: float | None = None
    high: float | None = None
    whole: bool = False
    """Its values are counts."""


def line_chart(
    title: str, x: Axis, y: Axis, series: Sequence[Series], *, note: str = "", diagonal: bool = False
) -> str:
    """A figure with legend; empty text where no series has a point.

    Args:
        title: above it.
        x: horizontal axis.
        y: vertical axis.
        series: in the order of the legend.
        note: below the title.
        diagonal: also draw the line y = x.
    """
    drawn = [s for s in (_drawable(s, x, y) for s in series) if s.points]
    if not drawn:
        return ""
    across = _Ruler.over(x, [p[0] for s in drawn for p in s.points], _LEFT, WIDTH - _RIGHT)
    up = _Ruler.over(y, [p[1] for s in drawn for p in s.points], HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(across, up, x, y)]
    if diagonal:
        ends = [(across.at(v), up.at(v)) for v in (max(across.low, up.low), min(across.high, up.high))]
        parts.append(f'<path class="even" d="{_path(ends)}"/>')
    parts += [_line(s, across, up) for s in drawn]
    told = escape(": ".join(filter(None, (title, "; ".join(_spoken(s) for s in drawn)))))
    legend = "".join(f"<li>{_sample(s)}{escape(s.name)}</li>" for s in drawn)
    caption = (f"<b>{escape(title)}</b>" if title else "") + (f" <span>{escape(note)}</span>" if note else "")
    return (
        f"<figure>{f'<figcaption>{caption}</figcaption>' if caption else ''}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}">{"".join(parts)}</svg>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _drawable(series: Series, x: Axis, y: Axis) -> Series:
    """Without what a scale has no place for, and not more points than can be told apart."""
    points = [
        (float(a), float(b))
        for a, b in series.points
        if math.isfinite(a) and math.isfinite(b) and (x.scale == "linear" or a > 0) and (y.scale == "linear" or b > 0)
    ]
    return Series(series.name, thinned(points), series.style, series.markers)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most some hundred points, each the mean of its neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups]


def _spoken(series: Series) -> str:
    first, last = series.points[0][1], series.points[-1][1]
    return f"{series.name} from {first:.4g} to {last:.4g}"


@dataclass(frozen=True)
class _Ruler:
    """Values to places on the picture."""

    low: float
    high: float
    scale: Scale
    start: float
    stop: float
    whole: bool

    @classmethod
    def over(cls, axis: Axis, values: Sequence[float], start: float, stop: float) -> _Ruler:
        low = min(values) if axis.low is None else axis.low
        high = max(values) if axis.high is None else axis.high
        if axis.scale == "linear" and axis.low is None:
            low -= 0.04 * (high - low)
        if axis.scale == "linear" and axis.high is None:
            high += 0.04 * (high - low)
        if high <= low:
            low, high = (low / 2, low * 2) if axis.scale == "log" else (low - 0.5, low + 0.5)
        return cls(low, high, axis.scale, start, stop, axis.whole)

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.scale == "log":
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values, some five of them."""
        if self.scale == "log":
            decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            every = max(1, math.ceil(len(decades) / 6))
            return [10.0**power for power in decades if (decades[-1] - power) % every == 0]
        raw = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
        if self.whole:
            step = max(1, math.ceil(step))
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _grid(across: _Ruler, up: _Ruler, x: Axis, y: Axis) -> str:
    parts = []
    for value in across.ticks():
        place = across.at(value)
        parts.append(f'<path class="rule" d="M{place} {_TOP}V{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{place}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>')
    for value in up.ticks():
        place = up.at(value)
        parts.append(f'<path class="rule" d="M{_LEFT} {place}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{place + 4}" text-anchor="end">{_number(value)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    middle_x, middle_y = (_LEFT + WIDTH - _RIGHT) / 2, (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(f'<text class="name" x="{middle_x}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x.title)}</text>')
    parts.append(
        f'<text class="name" transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.title)}</text>"
    )
    return "".join(parts)


def _number(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        power = math.floor(math.log10(abs(value)) + 1e-9)
        factor = value / 10.0**power
        ten = f'10<tspan dy="-4" font-size="10">{_minus(str(power))}</tspan>'
        return ten if math.isclose(factor, 1) else f"{_minus(f'{factor:.3g}')}·{ten}"
    return _minus(f"{value:.4g}")


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _line(series: Series, across: _Ruler, up: _Ruler) -> str:
    places = [(across.at(a), up.at(b)) for a, b in series.points]
    dash = series.dash
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    line = f'<path class="line s{series.colour}"{dashed} d="{_path(places)}"/>'
    marked = places if series.is_marked else []
    return line + "".join(_marker(series.colour, *place) for place in marked)


def _path(places: Sequence[Point]) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in places)


def _marker(style: int, x: float, y: float) -> str:
    kind = _MARKERS[style]
    if kind == "circle":
        return f'<circle class="mark s{style}" cx="{x:g}" cy="{y:g}" r="3"/>'
    corners = [(x + a, y + b) for a, b in _CORNERS[kind]]
    return f'<path class="mark s{style}" d="{_path(corners)}Z"/>'


def _sample(series: Series) -> str:
    dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
    return (
        f'<svg class="sample" viewBox="0 0 34 10" aria-hidden="true"><path class="line s{series.colour}"{dash} '
        f'd="M1 5L33 5"/>{_marker(series.colour, 17, 5) if series.is_marked else ""}</svg>'
    )
