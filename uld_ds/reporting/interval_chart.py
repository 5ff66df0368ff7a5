"""Figures with their intervals, one line each, as SVG inside a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 420
_LINE, _TOP, _BOTTOM = 34, 6, 26
_LEFT, _RIGHT = 12, 12


@dataclass(frozen=True)
class Interval:
    """A value, and where it may lie."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def interval_chart(title: str, intervals: Sequence[Interval], *, note: str = "") -> str:
    """A figure: a dot per value, a line for its interval; empty text for no values.

    Args:
        title: above it.
        intervals: from top to bottom.
        note: below the title.
    """
    if not intervals:
        return ""
    ends = [end for i in intervals for end in (i.low, i.value, i.high) if end is not None]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or max(abs(high) * 0.05, 0.5)
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 1)

    height = _TOP + _LINE * len(intervals) + _BOTTOM
    parts = []
    for place, interval in enumerate(intervals):
        y = _TOP + _LINE * place + 24
        parts.append(f'<text class="name" x="{_LEFT}" y="{y - 10}">{escape(interval.name)}</text>')
        parts.append(f'<path class="rule" d="M{_LEFT} {y}H{WIDTH - _RIGHT}"/>')
        if interval.low is not None and interval.high is not None:
            parts.append(f'<path class="line s0" d="M{at(interval.low)} {y}H{at(interval.high)}"/>')
            parts += [f'<path class="line s0" d="M{at(end)} {y - 4}v8"/>' for end in (interval.low, interval.high)]
        parts.append(f'<circle class="mark s0" cx="{at(interval.value)}" cy="{y}" r="4"/>')
        parts.append(f'<text x="{WIDTH - _RIGHT}" y="{y - 10}" text-anchor="end">{_told(interval)}</text>')
    base = height - 8
    parts.append(f'<text x="{_LEFT}" y="{base}">{low:.4g}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{base}" text-anchor="end">{high:.4g}</text>')
    told = escape(f"{title}: " + "; ".join(f"{i.name} {_told(i)}" for i in intervals))
    caption = f"<b>{escape(title)}</b>{f' <span>{escape(note)}</span>' if note else ''}"
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{told}">{"".join(parts)}</svg></figure>'
    )


def _told(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.4g}"
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
