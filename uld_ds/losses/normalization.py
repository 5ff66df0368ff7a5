"""Weights that make one optimizer step's loss independent of how its examples are spread out.

Cross-entropy is summed over answer tokens, ULD over segments; both are divided by counts over *all* ranks and
micro-batches of the step. ``sample`` divides by each example's own count and by the number of examples instead:
the mean of per-sample means of the ULD paper (arXiv 2402.12030).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uld_ds.batches import MicroBatch

SumOverRanks = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RowWeights:
    """Weights of a micro-batch's rows in the loss of the whole step."""

    answers: Tensor
    """[A] weights of the answer rows' cross-entropy."""
    segments: Tensor
    """[S] weights of the segments, for all that compares them: the ULD distance and the other terms."""


def step_weights(
    window: Sequence[MicroBatch], normalize: Literal["token", "sample"], sum_over_ranks: SumOverRanks
) -> list[RowWeights]:
    """Compute the weights of every row in a window; over all ranks, those of each kind add up to 1.

    Args:
        window: the micro-batches of this rank's step, on one device.
        normalize: ``token`` or ``sample``.
        sum_over_ranks: adds a [2] float64 tensor over all ranks. Called once.
    """
    raw = [_raw_weights(micro_batch, normalize) for micro_batch in window]
    local = torch.stack([sum_of(raw, "answers"), sum_of(raw, "segments")])
    total = sum_over_ranks(local).clamp_min(1e-12)
    return [RowWeights((row.answers / total[0]).float(), (row.segments / total[1]).float()) for row in raw]


def sum_of(weights: Sequence[RowWeights], kind: Literal["answers", "segments"]) -> Tensor:
    """Sum one kind of weight over a window, as a float64 scalar."""
    return torch.stack([getattr(row, kind).double().sum() for row in weights]).sum()


def _raw_weights(micro_batch: MicroBatch, normalize: Literal["token", "sample"]) -> RowWeights:
    student = micro_batch.student
    per_example = micro_batch.example_weight.double()
    weights = []
    for owner in (student.answer_example, micro_batch.segment_example):
        if normalize == "sample":
            counts = torch.bincount(owner, minlength=len(per_example)).clamp_min(1)
            weights.append((per_example / counts)[owner])
        else:
            weights.append(per_example[owner])
    return RowWeights(*weights)


def nats_to_bits(nats: float) -> float:
    """Convert nats to bits."""
    return nats / 0.6931471805599453
