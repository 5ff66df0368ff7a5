"""Checks of logits, temperatures and normalizers, and the dtype that sums are accumulated in."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Choose the dtype that sums over inputs of ``dtypes`` are kept in.

    float64 if any input is float64, float32 otherwise: half precision is never accumulated in.
    """
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_logits(logits: Tensor, name: str) -> None:
    """Raise ValueError unless ``logits`` is a floating-point ``[N, V]`` tensor with ``V >= 1``."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} must have shape [N, V] with V >= 1, got {list(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {logits.dtype}")


def check_temperature(temperature: float, name: str) -> None:
    """Raise ValueError unless ``temperature`` is a finite number above zero."""
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"{name} must be a finite number > 0, got {temperature}")


def check_normalizers(log_normalizer: Tensor, name: str) -> None:
    """Raise ValueError naming the first row whose log-normalizer says that a logit was NaN or +inf.

    A row's logsumexp is NaN or +inf exactly when one of its logits is, so looking at ``[N]`` numbers suffices.
    Reads one value back from the device: call it once, after the chunks.
    """
    bad = torch.isnan(log_normalizer) | (log_normalizer == float("inf"))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"{name}: row {row} holds NaN or +inf ({int(bad.sum())} such rows of {bad.numel()})")
