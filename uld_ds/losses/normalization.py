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
    window: Sequence[MicroBatch],
    normalize: Literal["token", "sample"],
    sum_over_ranks: SumOverRanks,
    *,
    together: bool = False,
) -> list[list[RowWeights]]:
    """Compute the weights of every row in a window, for each of the teachers; those of answers are alike for all.

    Over all ranks, the answers' weights add up to 1, and so do those of the segments of each teacher.

    Args:
        window: the micro-batches of this rank's step, on one device.
        normalize: ``token`` or ``sample``.
        sum_over_ranks: adds a [1 + number of teachers] float64 tensor over all ranks. Called once.
        together: whether the weights of the segments of all teachers add up to 1 together: each judges rows of its own.
    """
    raw = [_raw_weights(micro_batch, normalize) for micro_batch in window]
    by_teacher = list(zip(*raw, strict=True))
    local = torch.stack([sum_of(by_teacher[0], "answers"), *(sum_of(own, "segments") for own in by_teacher)])
    total = sum_over_ranks(local)
    if together:
        total = torch.cat([total[:1], total[1:].sum().expand(len(by_teacher))])
    total = total.clamp_min(1e-12)
    return [
        [
            RowWeights((row.answers / total[0]).float(), (row.segments / total[1 + number]).float())
            for number, row in enumerate(rows)
        ]
        for rows in raw
    ]


def sum_of(weights: Sequence[RowWeights], kind: Literal["answers", "segments"]) -> Tensor:
    """Sum one kind of weight over a window, as a float64 scalar."""
    return torch.stack([getattr(row, kind).double().sum() for row in weights]).sum()


def _raw_weights(micro_batch: MicroBatch, normalize: Literal["token", "sample"]) -> list[RowWeights]:
    of_answers = _weights_of(micro_batch, micro_batch.student.answer_example, normalize)
    return [RowWeights(of_answers, _weights_of(micro_batch, pairs.example, normalize)) for pairs in micro_batch.pairs]


def _weights_of(micro_batch: MicroBatch, owner: Tensor, normalize: Literal["token", "sample"]) -> Tensor:
    per_example = micro_batch.example_weight.double()
    if normalize == "token":
        return per_example[owner]
    counts = torch.bincount(owner, minlength=len(per_example)).clamp_min(1)
    return (per_example / counts)[owner]


def nats_to_bits(nats: float) -> float:
    """Convert nats to bits."""
    return nats / 0.6931471805599453
