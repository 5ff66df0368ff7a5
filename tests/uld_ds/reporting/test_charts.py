"""Charts are well-formed, put values where they belong, and tell lines apart without color."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from uld_ds.reporting.charts import HEIGHT, WIDTH, Axis, Series, line_chart, thinned

STEPS = Axis("step", whole=True)
LOSS = Axis("loss <nats>")


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def path_of(chart: str, style: int) -> list[tuple[float, float]]:
    found = next(
        e for e in parsed(chart).iter("path") if e.get("class") == f"line s{style}" and e.get("d", "")[1] != "1"
    )
    return [(float(a), float(b)) for a, b in re.findall(r"([\d.]+) ([\d.]+)", found.attrib["d"])]


def test_lower_values_are_lower_and_later_ones_further_right() -> None:
    chart = line_chart("T & C", STEPS, LOSS, [Series("a", [(1, 3.0), (2, 1.0), (3, 2.0)], 0)])
    (x1, y1), (x2, y2), (x3, y3) = path_of(chart, 0)
    assert x1 < x2 < x3
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 < y3 < y2  # counted from the top
    assert y2 - y3 == pytest.approx(y3 - y1, abs=0.2)
    assert 0 < x1 < x3 < WIDTH
    assert 0 < y1 < y2 < HEIGHT
    assert "T &amp; C: a from 3 to 2" in chart


def test_a_logarithm() -> None:
    series = [Series("a", [(1, 1.0), (10, 0.1), (100, 0.01), (0, 5.0), (5, 0.0)], 1)]
    chart = line_chart("", Axis("rank", "log"), Axis("p", "log"), series)
    points = path_of(chart, 1)
    assert len(points) == 3  # what has no logarithm is left out
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)
    assert points[1][1] - points[0][1] == pytest.approx(points[2][1] - points[1][1], abs=0.2)


def test_lines_differ_in_more_than_color() -> None:
    chart = line_chart("", STEPS, LOSS, [Series(str(style), [(1, 1.0), (2, style)], style) for style in range(4)])
    lines = [e for e in parsed(chart).iter("path") if (e.get("class") or "").startswith("line")]
    assert len({line.get("stroke-dasharray") for line in lines}) == 4
    marks = {
        (e.tag, e.get("d", "").count("L")) for e in parsed(chart).iter() if (e.get("class") or "").startswith("mark")
    }
    assert len(marks) >= 3


def test_a_legend_shows_what_is_drawn() -> None:
    series = [
        Series("a", [(1, 1.0), (2, 2.0)], 0, markers=False),
        Series("b", [(1, 1.0), (2, 3.0)], 1, markers=True),
    ]
    chart = line_chart("", STEPS, LOSS, series)
    assert "figcaption" not in chart
    first, second = re.findall(r"<li>(.*?)</li>", chart)
    assert "mark" not in first
    assert "mark" in second


def test_counts_have_whole_ticks() -> None:
    chart = line_chart("", STEPS, LOSS, [Series("a", [(1, 1.0), (3, 2.0)], 0)])
    below = [e.text for e in parsed(chart).iter("text") if e.get("text-anchor") == "middle" and e.get("class") is None]
    assert below == ["1", "2", "3"]


def test_one_point_and_none() -> None:
    assert line_chart("", STEPS, LOSS, [Series("a", [], 0), Series("b", [(1, float("nan"))], 1)]) == ""
    assert len(path_of(line_chart("", STEPS, LOSS, [Series("a", [(1, 2.0)], 0)]), 0)) == 1


def test_many_points_become_means() -> None:
    points = [(float(n), float(n % 2)) for n in range(1000)]
    few = thinned(points)
    assert len(few) == 200
    assert few[0] == (2.0, 0.4)
    assert thinned(points[:240]) == points[:240]


def ticks_of(chart: str) -> list[str]:
    """Numbers and names, the vertical axis's ones."""
    return [
        "".join(e.itertext()) for e in parsed(chart).iter("text") if e.get("text-anchor") == "end" or e.get("transform")
    ]


@pytest.mark.parametrize(
    ("largest", "ticks"),
    [
        (1e6, ["0", "0.25", "0.5", "0.75", "1", "loss <nats>, ×106"]),
        (2e-4, ["0", "0.5", "1", "1.5", "2", "loss <nats>, ×10−4"]),
        (20000.0, ["0", "5000", "10000", "15000", "20000", "loss <nats>"]),
    ],
)
def test_numbers_fit_beside_the_axis(largest: float, ticks: list[str]) -> None:
    assert ticks_of(line_chart("", STEPS, LOSS, [Series("a", [(1, 0.0), (2, largest)], 0)])) == ticks


def test_powers_of_ten_beside_a_logarithm() -> None:
    chart = line_chart("", STEPS, Axis("p", "log"), [Series("a", [(1, 1e-5), (2, 1e5)], 0)])
    assert ticks_of(chart) == ["10−5", "0.001", "0.1", "10", "1000", "105", "p"]
    assert '10<tspan dy="-4" font-size="10">−5</tspan>' in chart
