"""What on_policy.py's results say: accuracy of each arm, against the baseline, and the share of the gap it closes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from quality_table import t_quantile

Record = dict[str, Any]
Runs = Mapping[int, Record]
# A share of the gap below so many points of accuracy says nothing.
SMALLEST_GAP = 2.0


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_text(self, form: str) -> str:
        """With its bounds in brackets, where there are any."""
        if not math.isfinite(self.low):
            return f"{self.value:{form}}"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def solved(runs: Runs) -> np.ndarray:
    """[seeds, problems] of 100 where the problem was solved, else 0, in the order of seeds."""
    return 100.0 * np.array([runs[seed]["right"] for seed in sorted(runs)], float)


def accuracy(runs: Runs, *, resamples: int = 2000) -> Interval:
    """Percent of problems solved, with a bootstrap interval over seeds and problems."""
    points = solved(runs)
    drawn = [_resampled(points, draw).mean() for draw in _draws(resamples)]
    return Interval(float(points.mean()), *np.quantile(drawn, [0.025, 0.975]).tolist())


def difference(runs: Runs, baseline: Runs) -> Interval:
    """Points of accuracy against the baseline, by seed, with a t interval over seeds; unbounded for a single one."""
    seeds = _common(runs, baseline)
    by_seed = np.array([np.mean(runs[seed]["right"]) - np.mean(baseline[seed]["right"]) for seed in seeds]) * 100
    mean = float(by_seed.mean())
    if len(seeds) == 1:
        return Interval(mean, -math.inf, math.inf)
    half = t_quantile(len(seeds) - 1) * float(by_seed.std(ddof=1)) / math.sqrt(len(seeds))
    return Interval(mean, mean - half, mean + half)


def gap_closed(runs: Runs, baseline: Runs, teacher: Record, *, resamples: int = 2000) -> Interval | None:
    """Percent of the way from the baseline to the teacher, with a bootstrap interval over seeds and problems, all three
    on the same ones; None where there is hardly a gap."""
    seeds = _common(runs, baseline)
    arm, base = (solved({seed: those[seed] for seed in seeds}) for those in (runs, baseline))
    above = np.broadcast_to(100.0 * np.array(teacher["right"], float), arm.shape)
    if above.mean() - base.mean() < SMALLEST_GAP:
        return None
    stacked = np.stack([arm, base, above], axis=-1)
    drawn = []
    for draw in _draws(resamples):
        its, bases, teachers = _resampled(stacked, draw).mean((0, 1))
        drawn.append(100 * (its - bases) / max(teachers - bases, 1e-9))
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = 100 * (arm.mean() - base.mean()) / (above.mean() - base.mean())
    return Interval(float(value), float(low), float(high))


def tables(
    records: Sequence[Record],
    begun: Sequence[Record],
    teachers: Mapping[str, Record | None],
    order: Sequence[str],
    baseline: str,
) -> str:
    """Markdown: a table for each task, arms in the order of ``order``."""
    parts = []
    for task, teacher in teachers.items():
        arms = by_arm(records, task)
        if not arms or teacher is None:
            continue
        size = next(iter(next(iter(arms.values())).values()))["setup"]["size"]
        right = f"{100 * np.mean(teacher['right']):.1f}"
        starts = " / ".join(
            f"{100 * np.mean(run['right']):.1f}" for run in by_arm(begun, task).get("start", {}).values()
        )
        lines = [
            f"**{task}**: {size['gold']:,} gold examples, {size['prompts']:,} prompts without. Of "
            f"{len(teacher['right']):,} held-out problems the teacher solves {right} %, and the students that all arms "
            f"begin from {starts} %; then {size['steps']:,} steps of {size['batch_size']} examples",
            "",
            "| arm | accuracy, % | by seed | against the baseline | gap to the teacher closed, % | student tokens, M |"
            " s/step | core seconds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(arm, arms, teacher, baseline) for arm in order if arm in arms]
        parts.append("\n".join([*lines, "", *_aims(arms, teacher, baseline)]))
    return "\n\n".join(parts)


def by_arm(records: Sequence[Record], task: str) -> dict[str, dict[int, Record]]:
    """A task's runs by arm and seed."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["cell"]["task"] == task:
            found.setdefault(record["cell"]["arm"], {})[record["cell"]["seed"]] = record
    return found


def _row(name: str, arms: Mapping[str, Runs], teacher: Record, baseline: str) -> str:
    runs, base = arms[name], arms.get(baseline, {})
    seeds = " / ".join(f"{value:.1f}" for value in solved(runs).mean(1))
    cells = [name, accuracy(runs).to_text(".1f"), seeds]
    if name == baseline or not runs.keys() & base.keys():
        cells += ["", ""]
    else:
        closed = gap_closed(runs, base, teacher)
        cells += [difference(runs, base).to_text("+.1f"), "" if closed is None else closed.to_text(".0f")]
    cells += [
        f"{np.mean([run['student_tokens'] for run in runs.values()]) / 1e6:.2f}",
        f"{np.median([run['step_seconds'] for run in runs.values()]):.2f}",
        f"{np.mean([run['cpu_seconds'] for run in runs.values()]):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _aims(arms: Mapping[str, Runs], teacher: Record, baseline: str) -> list[str]:
    """What was aimed at: half of the gap closed, and twice the gain of GOLD's best arm."""
    base = arms.get(baseline, {})
    ours = {name: runs for name, runs in arms.items() if name.startswith("rollouts") and runs.keys() & base.keys()}
    theirs = {name: runs for name, runs in arms.items() if name.startswith("TRL") and runs.keys() & base.keys()}
    lines = []
    for name, runs in ours.items():
        closed = gap_closed(runs, base, teacher)
        if closed is not None:
            verdict = "reached" if closed.value >= 50 else "missed"
            lines.append(f"- {name}: {closed.value:.0f} % of the gap closed (aim: 50) - {verdict}")
        if theirs:
            gain = difference(runs, base).value
            most, whose = max((difference(those, base).value, which) for which, those in theirs.items())
            verdict = "reached" if gain > 0 and gain >= 2 * most else "missed"
            lines.append(
                f"- {name}: {gain:+.1f} points over the baseline, the best of GOLD's ({whose}) {most:+.1f} "
                f"(aim: twice as much) - {verdict}"
            )
    return lines


def _common(runs: Runs, baseline: Runs) -> list[int]:
    seeds = sorted(runs.keys() & baseline.keys())
    if not seeds:
        raise ValueError("no seed in common")
    return seeds


def _draws(resamples: int) -> list[np.random.Generator]:
    return [np.random.default_rng([0, number]) for number in range(resamples)]


def _resampled(points: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Seeds and problems drawn with replacement, of [seeds, problems, ...]."""
    seeds = draw.integers(0, points.shape[0], points.shape[0])
    problems = draw.integers(0, points.shape[1], points.shape[1])
    return points[seeds][:, problems]
