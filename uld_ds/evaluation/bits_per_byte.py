"""Held-out bits per byte: compares models across tokenizers, where perplexity per token cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uld_ds.data.order import IGNORED, deal
from uld_ds.data.teacher_batches import TeacherBatcher
from uld_ds.data.windows import Batcher, MicroBatch, SideBatch
from uld_ds.distributed import Ranks
from uld_ds.engine import bits
from uld_ds.teachers import TeacherSource

LogProbs = Callable[[MicroBatch], tuple[SideBatch, Tensor]]


def bits_per_byte(
    log_probs: LogProbs, batcher: Batcher, *, ranks: Ranks, micro_batch_size: int, device: torch.device
) -> float:
    """-sum log2 p(answer tokens) / answer bytes, over all ranks and all examples. Collective.

    Only tokens that spell the answer count. How a side ends its turn is its own convention and has no bytes.

    Args:
        log_probs: gives a side and the natural log-probabilities [A] of its answer tokens.
        batcher: the held-out examples.
        micro_batch_size: examples per forward on one rank.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for indices in _dealt(batcher, ranks, micro_batch_size):
        (micro_batch,) = batcher.window([indices])
        micro_batch = micro_batch.to(device)
        side, nats = log_probs(micro_batch)
        counted = side.answer_in_text * micro_batch.example_weight[side.answer_example]
        total[0] -= nats.double() @ counted.double()
        total[1] += (micro_batch.answer_bytes * micro_batch.example_weight).sum()
    total = ranks.sum(total)
    return bits(float(total[0])) / float(total[1])


def _dealt(batcher: Batcher, ranks: Ranks, micro_batch_size: int) -> Iterator[np.ndarray]:
    per_turn = ranks.size * micro_batch_size
    padded = -(-len(batcher) // per_turn) * per_turn
    indices = np.full(padded, IGNORED, dtype=np.int64)
    indices[: len(batcher)] = np.arange(len(batcher))
    yield from deal(indices, batcher.lengths, rank=ranks.rank, ranks=ranks.size, micro_batch_size=micro_batch_size)


def of_student(engine: Any) -> LogProbs:
    """Log-probabilities by a DistillationEngine's student."""
    return lambda micro_batch: (micro_batch.student, engine.answer_log_probs(micro_batch))


def of_teacher(teacher: Any, batcher: TeacherBatcher, device: torch.device) -> LogProbs:
    """Log-probabilities by an OnlineTeacher; ``batcher`` holds its side of the held-out examples."""

    def log_probs(micro_batch: MicroBatch) -> tuple[SideBatch, Tensor]:
        side = batcher.batch(micro_batch.examples).to(device)
        return side, teacher.answer_log_probs(side)

    return log_probs


def of_stored(teacher: TeacherSource, batcher: TeacherBatcher, device: torch.device) -> LogProbs:
    """Log-probabilities that are in a store of the held-out examples."""

    def log_probs(micro_batch: MicroBatch) -> tuple[SideBatch, Tensor]:
        side = batcher.batch(micro_batch.examples).to(device)
        answers = teacher.answers(micro_batch.examples, 0)
        return side, torch.cat([tokens.log_probs for tokens in answers]).to(device)

    return log_probs
