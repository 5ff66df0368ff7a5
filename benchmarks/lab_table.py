"""What lab.py's results say: what so many seeds can show, accuracy of each arm, and what it takes to reach it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lab_arms import ARMS, BASELINE, LABELED, START
from quality_table import t_quantile, tokens_to_reach

Record = dict[str, Any]
Runs = Mapping[int, Record]
# 80 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the normal one.
_T_80 = (1.376, 1.061, 0.978, 0.941, 0.920, 0.906, 0.896, 0.889, 0.883, 0.879)
_NORMAL_80 = 0.842
SEEDS = (3, 5, 8, 11)
AIM = 40
"""Percent of the baseline's student tokens."""


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

    @property
    def verdict(self) -> str:
        """Whether it is above or below 0, as far as that can be said."""
        if self.low > 0 or self.high < 0:
            return "better" if self.value > 0 else "worse"
        return "no difference shown"


def percents(runs: Runs) -> dict[int, float]:
    """Of problems solved, by seed."""
    return {seed: 100 * float(np.mean(runs[seed]["right"])) for seed in sorted(runs)}


def accuracy(runs: Runs, *, resamples: int = 2000) -> Interval:
    """Percent of problems solved, with a bootstrap interval over seeds and problems."""
    points = 100.0 * np.array([runs[seed]["right"] for seed in sorted(runs)], float)
    drawn = []
    for number in range(resamples):
        draw = np.random.default_rng([0, number])
        seeds, problems = (draw.integers(0, size, size) for size in points.shape)
        drawn.append(points[seeds][:, problems].mean())
    return Interval(float(points.mean()), *np.quantile(drawn, [0.025, 0.975]).tolist())


def differences(runs: Runs, baseline: Runs) -> list[float]:
    """Points of accuracy against the baseline, of each seed that both have.

    Raises:
        ValueError: they have none in common.
    """
    seeds = sorted(runs.keys() & baseline.keys())
    if not seeds:
        raise ValueError("no seed in common")
    its, bases = percents(runs), percents(baseline)
    return [its[seed] - bases[seed] for seed in seeds]


def over_seeds(values: Sequence[float]) -> Interval:
    """Their mean, with a t interval; unbounded for a single one."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def detectable(deviation: float, seeds: int) -> float:
    """The difference that so many seeds find with a probability of 80 %, in a two-sided test at 5 %.

    The usual approximation by two quantiles of Student's t, (t(97.5 %) + t(80 %)) s / sqrt(k).

    Args:
        deviation: standard deviation of paired differences.
        seeds: two or more.
    """
    freedom = seeds - 1
    power = _T_80[freedom - 1] if freedom <= len(_T_80) else _NORMAL_80
    return (t_quantile(freedom) + power) * deviation / math.sqrt(seeds)


def token_shares(runs: Runs, baseline: Runs) -> list[float]:
    """Student tokens until the baseline's final accuracy, of each seed, as a share of the baseline's; infinite where it
    is never reached. Accuracy is that of a curve, in a straight line between its points."""
    shares = []
    for seed in sorted(runs.keys() & baseline.keys()):
        last = baseline[seed]["curve"][-1]
        falling = [{"tokens": point["tokens"], "bits": -point["solved"]} for point in runs[seed]["curve"]]
        needed = tokens_to_reach(falling, -last["solved"])
        shares.append(math.inf if needed is None else needed / last["tokens"])
    return shares


# --- tables -----------------------------------------------------------------------------------------------------


Arms = dict[str, dict[int, Record]]


def tables(records: Sequence[Record], begun: Sequence[Record], teachers: Mapping[str, Record | None]) -> str:
    """Markdown: what can be shown of each setting, then a table of arms for each, in their order."""
    parts, shown = [], []
    for name, teacher in teachers.items():
        budgets = by_budget(records, name)
        whole = budgets.pop(100, {})
        if not whole or teacher is None:
            continue
        setting = next(iter(next(iter(whole.values())).values()))["setup"]["setting"]
        starts = by_budget(begun, name).get(100, {}).get(START, {})
        above = f"{100 * np.mean(teacher['right']):.1f} %"
        told = f", {setting['noise']:.0%} of them wrong," if setting["noise"] else ""
        noise = setting["teacher_noise"]
        taught = f", told {noise:.0%} wrong answers," if noise else ""
        lines = [
            f"**{name}**: {setting['gold']:,} gold examples{told} and {setting['prompts']:,} prompts without. Of "
            f"{setting['held_out']:,} held-out problems the teacher{taught} solves {above}, and "
            f"the students that all arms begin from {_listed(percents(starts).values())} %; then {setting['steps']:,} "
            f"steps of {setting['batch_size']} examples",
            "",
            *_head(budgets),
        ]
        lines += [_row(arm, whole, budgets) for arm in ARMS if arm in whole]
        parts.append("\n".join([*lines, "", *_best(whole)]))
        shown += power(name, whole)
    return "\n\n".join(["\n".join(shown), *parts] if shown else parts)


def by_budget(records: Sequence[Record], setting: str) -> dict[int, Arms]:
    """A setting's runs by percent of the steps, arm and seed."""
    found: dict[int, Arms] = {}
    for record in records:
        cell = record["cell"]
        if cell["setting"] == setting:
            found.setdefault(cell["budget"], {}).setdefault(cell["arm"], {})[cell["seed"]] = record
    return found


def power(setting: str, arms: Arms) -> list[str]:
    """How much seeds of a setting differ, and what that lets so many of them show."""
    lines = []
    for name in (BASELINE, LABELED):
        values = list(percents(arms.get(name, {})).values())
        if len(values) > 1:
            spread = statistics.stdev(values)
            lines.append(f"- {setting}: standard deviation over {len(values)} seeds of {name}, {spread:.1f} points")
    base = arms.get(LABELED, {})
    spreads = [
        statistics.stdev(differences(runs, base))
        for name, runs in arms.items()
        if name not in (BASELINE, LABELED) and len(runs.keys() & base.keys()) > 1
    ]
    if spreads:
        middle = statistics.median(spreads)
        said = ", ".join(f"{detectable(middle, seeds):.1f} with {seeds} seeds" for seeds in SEEDS)
        lines.append(
            f"- {setting}: standard deviation of an arm's differences from {LABELED}, median {middle:.1f} over "
            f"{len(spreads)} arms ({min(spreads):.1f} to {max(spreads):.1f}). Points that are found (two-sided 5 %, "
            f"power 80 %): {said}"
        )
    return lines


def _head(budgets: Mapping[int, Arms]) -> list[str]:
    columns = ["arm", "accuracy, %", "by seed", f"against {LABELED}", "difference by seed", "bits per byte"]
    columns += [f"tokens to its accuracy (aim {AIM} %)"]
    columns += [f"{budget} % of the steps, against all of it" for budget in sorted(budgets, reverse=True)]
    columns += ["student tokens, M", "s/step", "core seconds", "verdict"]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def _row(name: str, arms: Arms, budgets: Mapping[int, Arms]) -> str:
    runs, base = arms[name], arms.get(LABELED, {})
    bits = over_seeds([run["bits"] for run in runs.values()]).value
    cells = [name, accuracy(runs).to_text(".1f"), _listed(percents(runs).values())]
    verdict = ""
    if name == LABELED or not runs.keys() & base.keys():
        cells += ["", "", f"{bits:.3f}", ""]
    else:
        by_seed = differences(runs, base)
        found = over_seeds(by_seed)
        verdict = found.verdict
        cells += [found.to_text("+.1f"), _listed(by_seed, "+.1f"), f"{bits:.3f}", _tokens(token_shares(runs, base))]
    for _, cheaper in sorted(budgets.items(), reverse=True):
        fewer = cheaper.get(name, {})
        cells.append(over_seeds(differences(fewer, base)).to_text("+.1f") if fewer.keys() & base.keys() else "")
    cells += [
        f"{statistics.mean(run['student_tokens'] for run in runs.values()) / 1e6:.2f}",
        f"{statistics.median(run['step_seconds'] for run in runs.values()):.2f}",
        f"{statistics.mean(run['cpu_seconds'] for run in runs.values()):.0f}",
    ]
    return "| " + " | ".join([*cells, verdict]) + " |"


def _tokens(shares: Sequence[float]) -> str:
    reached = [share for share in shares if math.isfinite(share)]
    middle = statistics.median(shares)
    if not math.isfinite(middle):
        return f"not reached ({len(reached)} of {len(shares)} seeds do)"
    most = f"{max(shares):.0%}" if len(reached) == len(shares) else "never"
    return f"{middle:.0%} ({min(shares):.0%} to {most})"


def _best(arms: Arms) -> list[str]:
    """How many arms are compared, and what ours say against GOLD's."""
    base = arms.get(LABELED, {})
    found = {
        name: over_seeds(differences(runs, base))
        for name, runs in arms.items()
        if name not in (BASELINE, LABELED) and runs.keys() & base.keys()
    }
    theirs = {name: interval for name, interval in found.items() if name.startswith("TRL")}
    ours = {name: interval for name, interval in found.items() if name not in theirs}
    lines = [
        f"- {len(found)} arms are compared with one: without any effect, {0.05 * len(found):.1f} of them would be "
        "better or worse by chance"
    ]
    for words, those in (("ours", ours), ("GOLD's", theirs)):
        if those:
            best = max(those, key=lambda name: those[name].value)
            lines.append(f"- Best of {words}: {best}, {those[best].to_text('+.1f')} points ({those[best].verdict})")
    return lines


def _listed(values: Any, form: str = ".1f") -> str:
    return " / ".join(f"{value:{form}}" for value in values)
