"""Is a model as often right as it is sure? Its confidence in the likeliest token against how often that is the token.

Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599: predictions in bins of equal width, and the
expected calibration error, sum over bins of ``n_b / n * |accuracy_b - confidence_b|``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uld_ds.utils.distributed import Ranks

NUM_BINS = 10
# Nats below the likeliest token's log-probability within which a token counts as the likeliest: what is read from a
# store has been through a codec.
_TIE = 5e-3


class Calibration:
    """Counts, over the answer tokens of this rank."""

    def __init__(self, device: torch.device) -> None:
        # Per bin: tokens, those that were predicted, confidence.
        self._sums = torch.zeros(3, NUM_BINS, dtype=torch.float64, device=device)

    def add(self, log_probs: Tensor, tops: Tensor, weights: Tensor) -> None:
        """Some tokens.

        Args:
            log_probs: [A] natural log-probability of the token that stands there.
            tops: [A] that of the likeliest token; NaN where that is not known, and the token does not count.
            weights: [A] 0 where a token does not count.
        """
        known = tops.isfinite()
        log_probs, tops, weights = log_probs[known], tops[known], weights[known]
        confidence = tops.double().exp()
        bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        right = (log_probs >= tops - _TIE).double()
        weights = weights.double()
        self._sums.index_add_(1, bins, torch.stack([weights, weights * right, weights * confidence]))

    def to_json(self, ranks: Ranks) -> dict[str, Any] | None:
        """Of all ranks together, None for no tokens. Collective.

        Per bin that has any: ``tokens``, mean ``confidence``, ``accuracy``; and ``error``, the expected calibration
        error.
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
