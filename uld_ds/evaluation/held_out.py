"""Held-out evaluation while a run trains: bits per byte, calibration, and how long measuring took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from uld_ds.data.batching import Batcher
from uld_ds.evaluation.bits_per_byte import Scores, bits_per_byte
from uld_ds.evaluation.calibration import Calibration
from uld_ds.utils.distributed import Ranks


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a model on the held-out examples."""

    bits_per_byte: float
    """Bits per byte of the held-out answers; lower is better, whatever the tokenizer."""
    seconds: float
    """Wall time of the measurement."""
    calibration: dict[str, Any] | None = None
    """Confidence against correctness, as ``Calibration.to_json`` gives it; None on ranks that do not keep it."""
    by_teacher: dict[str, float] = field(default_factory=dict)
    """Bits per byte of each of several teachers, whose mean by their shares ``bits_per_byte`` is; empty otherwise."""


class HeldOut:
    """The held-out examples of a run, and how models are measured on them.

    Args:
        batcher: Batcher of the examples.
        micro_batch_size: Examples per forward on one rank.
        ranks: Process group.
        device: Device of the models.
    """

    def __init__(self, batcher: Batcher, *, micro_batch_size: int, ranks: Ranks, device: torch.device) -> None:
        self._batcher = batcher
        self._micro_batch_size = micro_batch_size
        self._ranks = ranks
        self._device = device

    def measure(self, scores: Scores) -> Evaluation:
        """Measure a model by its scores of the held-out answer tokens. Collective."""
        begin = time.perf_counter()
        calibration = Calibration(self._device)
        bits = bits_per_byte(
            scores,
            self._batcher,
            ranks=self._ranks,
            micro_batch_size=self._micro_batch_size,
            device=self._device,
            calibration=calibration,
        )
        return Evaluation(bits, time.perf_counter() - begin, calibration.to_json(self._ranks))
