"""The charts of performance.md and objectives.md, out of benchmarks/results/.

    python docs/charts.py

writes docs/steps.svg (seconds of an optimizer step, beside TRL's, by length and vocabulary) and docs/quality.svg (what
each objective does to held-out bits per byte). They are of the long runs: `make bench` alone changes none of them. A
test says when the results are newer than they are.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import all as every
from drawing import dot, path, svg, text

HERE = Path(__file__).parent
ARMS = {"trl positional": ("orange", "TRL GOLD"), "online": ("ochre", "online"), "stored": ("blue", "stored")}
SHARES = {"100": "blue", "50": "ochre", "25": "orange"}
PANELS = {("scratch", "given answers"): "from scratch", ("pruned", "given answers"): "pruned"}
PANELS[("scratch", "the teacher's answers")] = "scratch, teacher's answers"
SEEDS = 3

Row = dict[str, str]


def main() -> None:
    sections = every.read_results()
    for name, chart in {"steps.svg": steps, "quality.svg": quality}.items():
        (HERE / name).write_text(chart(sections))


def tables(markdown: str) -> list[tuple[str, list[Row]]]:
    """Each table's rows by the names of its columns, and the line of words before it."""
    found: list[tuple[str, list[Row]]] = []
    words, names = "", None
    for line in markdown.splitlines():
        if not line.startswith("|"):
            words, names = line or words, None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if names is None:
            names = cells
            found.append((words, []))
        elif not line.startswith("|-"):
            found[-1][1].append(dict(zip(names, cells, strict=True)))
    return found


# --- steps ------------------------------------------------------------------------------------------------------


def steps(sections: dict[str, str]) -> str:
    """Two panels, seconds over answer tokens and over entries, all on logarithmic scales."""
    series = {"By length:": "answer tokens", "By vocabulary:": "vocabulary"}
    long = [
        text_of
        for line, text_of in sections.items()
        if line.startswith("step") and not re.search("--(quick|before)", line)
    ]
    read = [table for text_of in long for table in tables(text_of)]
    parts: list[str] = []
    for number, (title, column) in enumerate(series.items()):
        rows = [row for words, rows in read if words == title for row in rows]
        points = {
            arm: sorted((_number(row[column]), _number(row["s/step"])) for row in rows if row["arm"] == arm)
            for arm in ARMS
        }
        parts += _panel(60 + 350 * number, column, points)
    return svg(760, 330, "Seconds of one optimizer step: TRL GOLD, and this with and without a store", parts)


def _panel(left: float, column: str, points: dict[str, list[tuple[float, float]]]) -> list[str]:
    right, top, bottom = left + 220, 40.0, 270.0
    places = sorted({x for line in points.values() for x, _ in line})
    across = _logarithmic(places[0], places[-1], left + 10, right - 10)
    up = _logarithmic(0.1, 20.0, bottom, top)
    parts = [text(left - 40, 22, "seconds per step", "small")]
    for second in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        parts.append(path([(left, up(second)), (right, up(second))], "grid"))
        parts.append(text(left - 6, up(second) + 4, f"{second:g}", "small", "end"))
    for x in places:
        label = f"{x / 1024:.0f}k" if column == "vocabulary" else f"{x:,.0f}"
        parts.append(text(across(x), bottom + 18, label, "small", "middle"))
    parts.append(
        text((left + right) / 2, bottom + 40, "entries" if column == "vocabulary" else column, "small", "middle")
    )
    for arm, line in points.items():
        color, name = ARMS[arm]
        parts.append(path([(across(x), up(y)) for x, y in line], f"line {color}"))
        parts += [dot(across(x), up(y), color) for x, y in line]
        parts.append(text(right + 4, up(line[-1][1]) + 4, name, "small"))
    return parts


def _logarithmic(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    return lambda value: begin + (end - begin) * math.log(value / low) / math.log(high / low)


# --- quality ----------------------------------------------------------------------------------------------------


def quality(sections: dict[str, str]) -> str:
    """A line per objective, a panel per student: difference from cross-entropy alone, with its interval."""
    (report,) = [text_of for line, text_of in sections.items() if line.startswith("quality") and "--report" in line]
    found: dict[tuple[str, str], dict[tuple[str, str], tuple[float, ...]]] = {}
    for words, rows in tables(report):
        said = re.match(r"\*\*(\w+)\*\* .*?, (given answers|the teacher's answers), (\d+) % of the data", words)
        if said is None:
            continue
        for row in rows:
            difference = [float(part) for part in re.findall(r"[-+][\d.]+", row["against ce (seeds and documents)"])]
            if difference and int(row["seeds"]) >= SEEDS:
                found.setdefault((said[1], said[2]), {})[row["arm"], said[3]] = tuple(difference)
    arms = list(dict.fromkeys(arm for panel in found.values() for arm, _ in panel))
    parts = [text(0, 84 + 40 * place, arm, "small") for place, arm in enumerate(arms)]
    for number, (key, title) in enumerate(PANELS.items()):
        parts += _differences(210 + 212 * number, title, arms, found[key])
    bottom = 64 + 40 * len(arms)
    parts.append(text(210, bottom + 40, "bits per byte against cross-entropy alone: left is better", "small"))
    for number, (share, color) in enumerate(SHARES.items()):
        x = 210 + 212 * number
        parts += [
            path([(x, bottom + 62), (x + 26, bottom + 62)], f"line {color}", dashed=False),
            dot(x + 13, bottom + 62, color),
        ]
        parts.append(text(x + 34, bottom + 66, f"{share} % of the data", "small"))
    return svg(840, bottom + 80, "What each objective does to held-out bits per byte, with 95 % intervals", parts)


def _differences(
    left: float, title: str, arms: Sequence[str], found: dict[tuple[str, str], tuple[float, ...]]
) -> list[str]:
    width, top, bottom = 190.0, 56.0, 64.0 + 40 * len(arms)

    def across(bits: float) -> float:
        return left + width * (bits + 0.13) / 0.34

    parts = [text(left + width / 2, 20, title, "small", "middle")]
    for bits in (-0.1, 0.0, 0.1, 0.2):
        parts.append(path([(across(bits), top), (across(bits), bottom)], "axis" if bits == 0 else "grid"))
        parts.append(text(across(bits), top - 8, f"{bits:+.1f}" if bits else "0", "small", "middle"))
    for place, arm in enumerate(arms):
        for number, (share, color) in enumerate(SHARES.items()):
            if (arm, share) not in found:
                continue
            middle, low, high = found[arm, share]
            y = 70 + 40 * place + 10 * number
            parts.append(path([(across(low), y), (across(high), y)], f"line {color}", dashed=False))
            parts.append(dot(across(middle), y, color))
    return parts


def _number(cell: str) -> float:
    """The first of a cell."""
    return float(cell.split(" ")[0].replace(",", ""))


if __name__ == "__main__":
    main()
