"""Charts as SVG: figures inside a page, and pictures that stand alone. Light and dark, no script, nothing loaded.

Colors come from the page's own variables, so a chart follows its theme; a series has a dash and, where its points are
few, a marker of its own, so that lines are told apart without color, too. The legend shows a name beside a sample of
what is drawn.

This is the only chart library here, and the project's own. A plotting library would write colors into every element,
number the parts that its elements refer to, and take twice as long to import as a report takes to write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from uld_ds.reporting.rulers import Axis, Ruler, Tick
from uld_ds.reporting.templates import fragment, render

__all__ = ["HEIGHT", "WIDTH", "Axis", "Series", "line_chart", "line_picture", "thinned"]

Point = tuple[float, float]

WIDTH, HEIGHT = 420, 250
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
class Frame:
    """A picture's size, and the margins around what is plotted."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    num_ticks: tuple[int, int] = (5, 5)
    """Numbers of ticks across and up."""

    def across(self, axis: Axis, values: Sequence[float]) -> Ruler:
        """Lay an axis over the frame from left to right, so that it holds all values."""
        return Ruler.over(axis, values, self.left, self.width - self.right, self.num_ticks[0])

    def up(self, axis: Axis, values: Sequence[float]) -> Ruler:
        """Lay an axis over the frame from bottom to top, so that it holds all values."""
        return Ruler.over(axis, values, self.height - self.bottom, self.top, self.num_ticks[1])


_IN_PAGE = Frame(WIDTH, HEIGHT, left=56, right=12, top=10, bottom=42)
# The legend is on the right, a line per name: nothing here can measure text.
ALONE = Frame(880, 420, left=66, right=290, top=48, bottom=46, num_ticks=(8, 7))


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    style: int
    """Number of the color, dash and marker, the same for the same thing in every chart.

    From 4 on, colors come with other dashes; 16 are told apart."""
    markers: bool | None = None
    """Whether the points have markers; by default where they are few."""

    @property
    def color(self) -> int:
        """Number of the line's color among the page's four; the marker goes with it."""
        return self.style % len(_MARKERS)

    @property
    def is_marked(self) -> bool:
        """Whether the line's points have markers."""
        return self.markers is True or (self.markers is None and len(self.points) <= _FEW_POINTS)

    @property
    def dash(self) -> str:
        """Pattern of the line's dashes, which starts one later with every round of colors."""
        return _DASHES[(self.style + self.style // len(_MARKERS)) % len(_DASHES)]

    @property
    def told(self) -> str:
        """Description of the line for those who hear the page: its name, first and last value."""
        return f"{self.name} from {self.points[0][1]:.4g} to {self.points[-1][1]:.4g}"


@dataclass(frozen=True)
class _Mark:
    """A marker: a circle, or an outline."""

    x: float
    y: float
    outline: str

    @classmethod
    def of(cls, color: int, x: float, y: float) -> _Mark:
        corners = _CORNERS.get(_MARKERS[color])
        return cls(x, y, f"{path([(x + a, y + b) for a, b in corners])}Z" if corners else "")


@dataclass(frozen=True)
class _Line:
    """A series on the picture."""

    name: str
    color: int
    dash: str
    path: str
    marks: list[_Mark]
    sample_mark: _Mark | None

    @classmethod
    def of(cls, series: Series, across: Ruler, up: Ruler) -> _Line:
        places = [(across.at(a), up.at(b)) for a, b in series.points]
        marks = [_Mark.of(series.color, *place) for place in places] if series.is_marked else []
        sample_mark = _Mark.of(series.color, 17, 5) if series.is_marked else None
        return cls(series.name, series.color, series.dash, path(places), marks, sample_mark)


@dataclass(frozen=True)
class Grid:
    """The grid behind what is plotted: ticks, names of the axes, powers of ten."""

    frame: Frame
    across: list[Tick]
    up: list[Tick]
    names: tuple[str, str]
    powers: tuple[str, str]

    @classmethod
    def of(cls, frame: Frame, across: Ruler, up: Ruler) -> Grid:
        """Make the grid of a horizontal and a vertical ruler."""
        names, powers = (across.axis.title, up.axis.title), (across.power, up.power)
        return cls(frame, across.ticks(), up.ticks(), names, powers)


@dataclass(frozen=True)
class _Plot:
    """What is plotted: the grid and the lines over it."""

    grid: Grid
    even: str
    lines: list[_Line]
    told: str

    @classmethod
    def of(cls, frame: Frame, x: Axis, y: Axis, series: Sequence[Series], diagonal: bool = False) -> _Plot | None:
        """Plot those series that have points to draw; None if none has."""
        drawn = [s for s in (_drawable(s, x, y) for s in series) if s.points]
        if not drawn:
            return None
        across = frame.across(x, [p[0] for s in drawn for p in s.points])
        up = frame.up(y, [p[1] for s in drawn for p in s.points])
        ends = [(across.at(v), up.at(v)) for v in (max(across.low, up.low), min(across.high, up.high))]
        even = path(ends) if diagonal else ""
        lines = [_Line.of(s, across, up) for s in drawn]
        return cls(Grid.of(frame, across, up), even, lines, "; ".join(s.told for s in drawn))


def line_chart(
    title: str, x: Axis, y: Axis, series: Sequence[Series], *, note: str = "", diagonal: bool = False
) -> Markup:
    """Draw a figure of a page, with its legend; empty text where no series has a point.

    Args:
        title: text above the figure.
        x: horizontal axis.
        y: vertical axis.
        series: lines in the order of the legend.
        note: text below the title.
        diagonal: also draw the line y = x.
    """
    plot = _Plot.of(_IN_PAGE, x, y, series, diagonal)
    return fragment("line_chart.html.j2", title=title, note=note, plot=plot) if plot else Markup()


def line_picture(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Draw a picture that stands alone, as the text of an SVG file; empty text where no series has a point."""
    plot = _Plot.of(ALONE, x, y, series)
    return render("line_picture.svg.j2", title=title, frame=ALONE, plot=plot) if plot else ""


def _drawable(series: Series, x: Axis, y: Axis) -> Series:
    """Drop the points of a series that a scale has no place for, and thin it to what can be told apart."""
    points = [
        (float(a), float(b))
        for a, b in series.points
        if math.isfinite(a) and math.isfinite(b) and (x.scale == "linear" or a > 0) and (y.scale == "linear" or b > 0)
    ]
    return Series(series.name, thinned(points), series.style, series.markers)


def thinned(points: Sequence[Point]) -> list[Point]:
    """Reduce points to at most 240, each the mean of as many neighbors."""
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups]


def path(places: Sequence[Point]) -> str:
    """Write places as an SVG path of straight lines."""
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in places)
