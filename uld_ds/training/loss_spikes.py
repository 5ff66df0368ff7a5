"""Detection of losses far above the recent ones."""

from __future__ import annotations

import torch


class SpikeDetector:
    """A detector of losses far above the recent ones.

    A loss is a spike when it exceeds the median of the last ``WINDOW`` by more than ``threshold`` robust standard
    deviations (1.4826 times the median absolute deviation, at least one percent of the median: a loss that hardly
    moves is no reason to call every tremor a spike).

    Args:
        threshold: robust standard deviations above the median; 0 finds nothing.
        recent: earlier losses, oldest first; changed in place, so that a checkpoint can keep it.
    """

    WINDOW = 64
    """Number of recent losses that the median is taken of."""
    ENOUGH = 16
    """Number of losses before which nothing is called a spike."""

    def __init__(self, threshold: float, recent: list[float]) -> None:
        self._threshold = threshold
        self._recent = recent

    def add(self, loss: float) -> float | None:
        """Add a loss; return how many robust standard deviations a spike is above the median, None for no spike."""
        height = self._height(loss)
        # A spike does not become the measure of the next one at once: the median moves slowly.
        self._recent.append(loss)
        del self._recent[: -self.WINDOW]
        return height if self._threshold and height is not None and height > self._threshold else None

    def _height(self, loss: float) -> float | None:
        if len(self._recent) < self.ENOUGH:
            return None
        recent = torch.tensor(self._recent, dtype=torch.float64)
        median = recent.median()
        spread = (1.4826 * (recent - median).abs().median()).clamp_min(0.01 * abs(float(median)) + 1e-12)
        return float((loss - median) / spread)
