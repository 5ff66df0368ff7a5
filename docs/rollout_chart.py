"""The chart of rollouts.md, out of benchmarks/results/lab.md.

    python docs/rollout_chart.py

writes docs/rollouts.svg: the share of held-out problems that students solve, by what they learned from, with a dot for
every seed, an interval, and lines for the baseline and the teacher.
"""

from __future__ import annotations

import re
from pathlib import Path

from charts import Row, every, tables
from drawing import dot, path, svg, text

HERE = Path(__file__).parent
WIDTH, LEFT, ROW = 300.0, 260.0, 30


def main() -> None:
    (HERE / "rollouts.svg").write_text(rollouts(every.read_results()))


def rollouts(sections: dict[str, str]) -> str:
    """A panel for each setting of the long run, a line for each arm."""
    (report,) = [section for line, section in sections.items() if line.startswith("lab ") and "--quick" not in line]
    panels = []
    for words, rows in tables(report):
        said = re.match(r"\*\*([\w, ]+)\*\*: .* the teacher(?:, told [^,]*,)? solves ([\d.]+) %", words)
        if said is not None:
            panels.append((said[1], float(said[2]), rows))
    arms = list(dict.fromkeys(row["arm"] for _, _, rows in panels for row in rows))
    bottom = 56.0 + ROW * len(arms)
    parts = [text(0, 74 + ROW * place, arm, "small") for place, arm in enumerate(arms)]
    for number, (task, teacher, rows) in enumerate(panels):
        parts += _panel(LEFT + (WIDTH + 40) * number, bottom, task, teacher, rows, arms)
    parts.append(text(LEFT, bottom + 20, "percent of held-out problems solved; dots: seeds; dashes: teacher", "small"))
    width = round(LEFT + (WIDTH + 40) * len(panels))
    return svg(width, round(bottom) + 32, "Problems that students solve, by what they learned from", parts)


def _panel(left: float, bottom: float, task: str, teacher: float, rows: list[Row], arms: list[str]) -> list[str]:
    def across(percent: float) -> float:
        return left + WIDTH * percent / 100

    parts = [text(left + WIDTH / 2, 20, task, "small", "middle")]
    for percent in range(0, 101, 20):
        parts.append(path([(across(percent), 52), (across(percent), bottom)], "axis" if percent == 0 else "grid"))
        parts.append(text(across(percent), 44, str(percent), "small", "middle"))
    parts.append(path([(across(teacher), 52), (across(teacher), bottom)], "line orange"))
    for row in rows:
        y = 70.0 + ROW * arms.index(row["arm"])
        _, low, high = (float(value) for value in re.findall(r"[\d.]+", row["accuracy, %"]))
        parts.append(path([(across(low), y), (across(high), y)], "line blue"))
        parts += [dot(across(float(seed)), y, "blue") for seed in row["by seed"].split(" / ")]
    return parts


if __name__ == "__main__":
    main()
