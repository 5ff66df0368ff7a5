"""Rulers that turn values into places on a chart, and the ticks beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Scale = Literal["linear", "log"]
# Of numbers that are written without a power of ten: from 0.001 to below 100000.
_PLAIN_POWERS = range(-3, 5)


@dataclass(frozen=True)
class Axis:
    """One axis of a chart: its title, scale and ends."""

    title: str
    scale: Scale = "linear"
    low: float | None = None
    high: float | None = None
    whole: bool = False
    """Whether the axis's values are counts, with ticks at whole numbers alone."""


@dataclass(frozen=True)
class Tick:
    """A place on an axis and the number beside it, ``text`` or, with ``power``, ``text`` to that power."""

    place: float
    text: str
    power: str = ""


@dataclass(frozen=True)
class Ruler:
    """An axis laid over a stretch of the picture, which may run backwards."""

    axis: Axis
    low: float
    high: float
    start: float
    stop: float
    num_ticks: int

    @classmethod
    def over(cls, axis: Axis, values: Sequence[float], start: float, stop: float, num_ticks: int = 5) -> Ruler:
        """Lay an axis over a stretch so that it holds all values, with a margin where the axis names no end."""
        low = min(values) if axis.low is None else axis.low
        high = max(values) if axis.high is None else axis.high
        if axis.scale == "linear" and axis.low is None:
            low -= 0.04 * (high - low)
        if axis.scale == "linear" and axis.high is None:
            high += 0.04 * (high - low)
        if high <= low:
            low, high = (low / 2, low * 2) if axis.scale == "log" else (low - 0.5, low + 0.5)
        return cls(axis, low, high, start, stop, num_ticks)

    def at(self, value: float) -> float:
        """Find the place of a value on the picture; of one beyond an end, that end's."""
        value = min(max(value, self.low), self.high)
        if self.axis.scale == "log":
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    @property
    def power(self) -> str:
        """Exponent of the power of ten that all ticks of a linear axis are multiples of, empty for 1."""
        return _minus(str(self._power())) if self._power() else ""

    def ticks(self) -> list[Tick]:
        """Choose ticks at round values, at most one more than ``num_ticks`` on a linear axis."""
        if self.axis.scale == "log":
            return [Tick(self.at(10.0**power), *_power_of_ten(power)) for power in self._decades()]
        unit = 10.0 ** self._power()
        return [Tick(self.at(value), _minus(f"{value / unit:.10g}")) for value in self._round_values()]

    def _decades(self) -> list[int]:
        decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
        every = max(1, math.ceil(len(decades) / 6))
        return [power for power in decades if (decades[-1] - power) % every == 0]

    def _round_values(self) -> list[float]:
        raw = (self.high - self.low) / self.num_ticks
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
        if self.axis.whole:
            step = max(1, math.ceil(step))
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _power(self) -> int:
        """Compute the exponent of the power of ten that all ticks are multiples of."""
        largest = max((abs(value) for value in self._round_values()), default=0.0)
        if self.axis.scale == "log" or not largest:
            return 0
        power = math.floor(math.log10(largest) + 1e-9)
        return 0 if power in _PLAIN_POWERS else power


def _power_of_ten(power: int) -> tuple[str, str]:
    return (f"{10.0**power:g}", "") if power in _PLAIN_POWERS else ("10", _minus(str(power)))


def _minus(number: str) -> str:
    return number.replace("-", "−")
