"""What quality.py's results say: differences from cross-entropy alone, with intervals, and a verdict for each arm."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond them the normal one.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.96


@dataclass(frozen=True)
class Against:
    """An arm against the baseline, same student, data and seeds; bits per byte, negative is better."""

    difference: float
    low: float
    high: float
    """95 % bootstrap interval over seeds and held-out documents, both drawn with replacement, in pairs."""
    seeds_low: float
    seeds_high: float
    """95 % t interval over seeds alone; infinite for a single one."""
    by_seed: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """Whether it helps, as far as that can be said."""
        side = "better" if self.difference < 0 else "worse"
        same_sign = all(value < 0 for value in self.by_seed) or all(value > 0 for value in self.by_seed)
        # Other documents could turn it round.
        if not (same_sign and (self.high < 0 or self.low > 0)):
            return "no difference shown"
        if self.seeds_high < 0 or self.seeds_low > 0:
            return side
        if len(self.by_seed) > 1:
            return f"{side} with each of these seeds, not certain of others"
        return "no difference shown"


def bits_of(record: Record) -> float:
    """Held-out bits per byte at the end of a run."""
    return float(np.sum(record["nats"]) / np.log(2) / np.sum(record["bytes"]))


def said_of(results: Path, name: str) -> str:
    """What is said of a finished run."""
    return f"{bits_of(json.loads((results / f'{name}.json').read_text())):.4f} bits per byte"


def against(arm: Mapping[int, Record], baseline: Mapping[int, Record], *, resamples: int = 2000) -> Against:
    """Compares runs by seed; only seeds that both have count.

    Raises:
        ValueError: they have none in common, or other documents.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    if not seeds:
        raise ValueError("no seed in common")
    num_bytes = np.asarray(baseline[seeds[0]]["bytes"], float)
    if any(runs[seed]["bytes"] != baseline[seeds[0]]["bytes"] for runs in (arm, baseline) for seed in seeds):
        raise ValueError("the held-out documents differ")
    # [seeds, documents]
    nats = np.array([np.subtract(arm[seed]["nats"], baseline[seed]["nats"]) for seed in seeds]) / math.log(2)
    by_seed = nats.sum(1) / num_bytes.sum()
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        documents = draw.integers(0, nats.shape[1], nats.shape[1])
        chosen = nats[draw.integers(0, len(seeds), len(seeds))][:, documents]
        drawn.append(chosen.mean(0).sum() / num_bytes[documents].sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    mean, half = float(by_seed.mean()), math.inf
    if len(seeds) > 1:
        half = t_quantile(len(seeds) - 1) * float(by_seed.std(ddof=1)) / math.sqrt(len(seeds))
    return Against(mean, float(low), float(high), mean - half, mean + half, tuple(by_seed.tolist()))


def f1_against(arm: Mapping[int, Record], baseline: Mapping[int, Record], *, resamples: int = 2000) -> str:
    """Difference of mean token F1 in points, with a 95 % bootstrap interval over seeds and prompts, in pairs."""
    seeds = sorted(arm.keys() & baseline.keys())
    points = np.array([np.subtract(arm[seed]["f1"], baseline[seed]["f1"]) for seed in seeds])
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        prompts = draw.integers(0, points.shape[1], points.shape[1])
        drawn.append(points[draw.integers(0, len(seeds), len(seeds))][:, prompts].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{points.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def t_quantile(freedom: int) -> float:
    """97.5 % of Student's t."""
    return _T[freedom - 1] if freedom <= len(_T) else _NORMAL


def tokens_to_reach(curve: Sequence[Mapping[str, float]], bits: float) -> float | None:
    """Student tokens after which a curve is at ``bits`` or below for the first time, interpolated; None for never."""
    before = None
    for point in curve:
        if point["bits"] <= bits:
            if before is None:
                return point["tokens"]
            share = (before["bits"] - bits) / (before["bits"] - point["bits"])
            return before["tokens"] + share * (point["tokens"] - before["tokens"])
        before = point
    return None


def share_of_tokens(arm: Mapping[int, Record], baseline: Mapping[int, Record]) -> str:
    """Tokens until the baseline's final quality, as a share of the baseline's: of each seed the median."""
    shares = []
    for seed in sorted(arm.keys() & baseline.keys()):
        needed = tokens_to_reach(arm[seed]["curve"], baseline[seed]["curve"][-1]["bits"])
        shares.append(math.inf if needed is None else needed / baseline[seed]["curve"][-1]["tokens"])
    reached = sum(share < math.inf for share in shares)
    middle = statistics.median(shares)
    return f"{middle:.0%}" if middle < math.inf else f"not reached ({reached} of {len(shares)} seeds do)"


Arms = dict[str, dict[int, Record]]
Group = tuple[str, str, int]


def grouped(records: Sequence[Record]) -> dict[Group, dict[int, Arms]]:
    """By answers, student and percent of the data; then by percent of the steps, arm and seed."""
    runs: dict[Group, dict[int, Arms]] = {}
    for record in records:
        cell = record["cell"]
        budgets = runs.setdefault((cell["answers"], cell["student"], cell["percent"]), {})
        budgets.setdefault(cell["budget"], {}).setdefault(cell["arm"], {})[cell["seed"]] = record
    return runs


def tables(records: Sequence[Record], order: Sequence[str], baseline: str) -> str:
    """Markdown: one table for each kind of answers, student and share of the data, in the order of ``order``; runs with
    a share of the steps have a column beside those with all of them."""
    parts = []
    for (answers, student, percent), budgets in sorted(grouped(records).items(), key=_place):
        whole = budgets.pop(100, {})
        some = next(iter(next(iter((whole or next(iter(budgets.values()))).values())).values()))
        tokens, answers_of = some["curve"][-1]["tokens"], "the teacher's" if answers == "teacher" else answers
        title = (
            f"**{student}** ({some['parameters'] / 1e6:.1f}M parameters), {answers_of} answers, {percent} % of the data"
        )
        lines = [f"{title}, {tokens:,.0f} tokens", "", *_head(baseline, budgets)]
        for name in [name for name in order if name in whole]:
            lines.append(_row(name, whole, budgets, baseline))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _place(item: tuple[Group, Any]) -> tuple[bool, bool, int]:
    (answers, student, percent), _ = item
    return answers != "given", student != "scratch", -percent


def _head(baseline: str, budgets: Iterable[int]) -> list[str]:
    columns = ["arm", "seeds", "bits per byte", f"against {baseline} (seeds and documents)", "tokens to its quality"]
    columns += [f"{budget} % of the steps, against all of {baseline}'s" for budget in sorted(budgets, reverse=True)]
    columns += [f"token F1 (against {baseline})", "verdict of bits per byte"]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def _row(name: str, arms: Arms, budgets: Mapping[int, Arms], baseline: str) -> str:
    arm, base = arms[name], arms.get(baseline, {})
    bits = [bits_of(arm[seed]) for seed in sorted(arm)]
    f1 = statistics.mean(statistics.mean(record["f1"]) for record in arm.values())
    skipped = sum(record["skipped"] for record in arm.values())
    cells = [name, str(len(arm)), f"{statistics.mean(bits):.3f} ({min(bits):.3f} to {max(bits):.3f})"]
    if name == baseline:
        cells, verdict = [*cells, "", "100%"], ""
    elif not arm.keys() & base.keys():
        cells, verdict = [*cells, "", ""], "nothing to compare with"
    else:
        cells, verdict = [*cells, _difference(arm, base), share_of_tokens(arm, base)], against(arm, base).verdict
    for _, cheaper in sorted(budgets.items(), reverse=True):
        cells.append(_difference(cheaper.get(name, {}), base))
    if skipped:
        verdict += f" ({skipped} steps skipped)"
    against_f1 = f" ({f1_against(arm, base)})" if name != baseline and arm.keys() & base.keys() else ""
    return "| " + " | ".join([*cells, f"{f1:.1f}{against_f1}", verdict]) + " |"


def _difference(arm: Mapping[int, Record], baseline: Mapping[int, Record]) -> str:
    """With its interval; nothing where no seed is in both."""
    if not arm.keys() & baseline.keys():
        return ""
    found = against(arm, baseline)
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
