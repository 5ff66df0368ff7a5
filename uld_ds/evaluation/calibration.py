"""The calibration of a model: its confidence in the most probable token against how often that is the right one.

Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599: predictions in bins of equal width, and the
expected calibration error, sum over bins of ``n_b / n * |accuracy_b - confidence_b|``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uld_ds.utils.distributed import Ranks

NUM_BINS = 10
# Nats below the most probable token's log-probability within which a token counts as the most probable: what is read
# from a store has been through a codec.
_TIE = 5e-3


class Calibration:
    """Counts of confidence and correctness, over the answer tokens of this rank."""

    def __init__(self, device: torch.device) -> None:
        # Per bin: tokens, those that were predicted, sum of confidences.
        self._sums = torch.zeros(3, NUM_BINS, dtype=torch.float64, device=device)

    def add(self, log_probs: Tensor, tops: Tensor, weights: Tensor) -> None:
        """Count some answer tokens.

        Args:
            log_probs: [A] natural log-probability of the token that stands there.
            tops: [A] natural log-probability of the most probable token; NaN where that is not known, and the token
                does not count.
            weights: [A] weight of each token; 0 where it does not count.
        """
        known = tops.isfinite()
        log_probs, tops, weights = log_probs[known], tops[known], weights[known]
        confidence = tops.double().exp()
        bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        right = (log_probs >= tops - _TIE).double()
        weights = weights.double()
        self._sums.index_add_(1, bins, torch.stack([weights, weights * right, weights * confidence]))

    def to_json(self, ranks: Ranks) -> dict[str, Any] | None:
        """Sum up the counts of all ranks as plain values; None if no token counted. Collective.

        Returns:
            ``tokens``, ``error`` (the expected calibration error), ``accuracy``, and ``bins``: of each that has any
            tokens, ``tokens``, mean ``confidence`` and ``accuracy``.
        """
        tokens, right, confidence = ranks.sum(self._sums).cpu()
        total = float(tokens.sum())
        if not total > 0:
            return None
        bins = [
            {"tokens": int(n), "confidence": float(c / n), "accuracy": float(r / n)}
            for n, r, c in zip(tokens, right, confidence, strict=True)
            if n > 0
        ]
        error = sum(b["tokens"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / total
        return {"tokens": int(total), "error": error, "accuracy": float(right.sum()) / total, "bins": bins}
