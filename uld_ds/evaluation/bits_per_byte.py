"""Held-out bits per byte, which compare models across tokenizers, where perplexity per token cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uld_ds.batches import MicroBatch, SideBatch
from uld_ds.data.batching import Batcher
from uld_ds.data.sampling import IGNORED, deal
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.evaluation.calibration import Calibration
from uld_ds.losses.normalization import nats_to_bits
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.source import TeacherSource
from uld_ds.utils.distributed import Ranks

Scores = Callable[[MicroBatch], tuple[SideBatch, Tensor]]


def bits_per_byte(
    scores: Scores,
    batcher: Batcher,
    *,
    ranks: Ranks,
    micro_batch_size: int,
    device: torch.device,
    calibration: Calibration | None = None,
) -> float:
    """Compute bits per byte over all ranks and all examples: -sum log2 p(answer tokens) / answer bytes. Collective.

    Only tokens that spell the answer count. How a side ends its turn is its own convention and has no bytes.

    Args:
        scores: Scorer of a micro-batch: gives a side and, for its A answer tokens, [A, 2] natural log-probabilities, of
            the token and of the most probable one there.
        batcher: Batcher of the held-out examples.
        ranks: Process group.
        micro_batch_size: Examples per forward on one rank.
        device: Device of the model.
        calibration: Counts of confidence that the same tokens are added to, if given.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)  # nats, bytes
    for indices in _dealt(batcher, ranks, micro_batch_size):
        (micro_batch,) = batcher.window([indices])
        micro_batch = micro_batch.to(device)
        side, found = scores(micro_batch)
        counted = side.answer_in_text * micro_batch.example_weight[side.answer_example]  # [A]
        total[0] -= found[:, 0].double() @ counted.double()
        if calibration is not None:
            calibration.add(found[:, 0], found[:, 1], counted)
        total[1] += (micro_batch.answer_bytes * micro_batch.example_weight).sum()
    total = ranks.sum(total)
    return nats_to_bits(float(total[0])) / float(total[1])


def _dealt(batcher: Batcher, ranks: Ranks, micro_batch_size: int) -> Iterator[np.ndarray]:
    per_turn = ranks.size * micro_batch_size
    padded = -(-len(batcher) // per_turn) * per_turn
    indices = np.full(padded, IGNORED, dtype=np.int64)
    indices[: len(batcher)] = np.arange(len(batcher))
    yield from deal(indices, batcher.lengths, rank=ranks.rank, ranks=ranks.size, micro_batch_size=micro_batch_size)


def student_scorer(engine: Any) -> Scores:
    """Make a scorer by the student of a DistillationEngine."""
    return lambda micro_batch: (micro_batch.student, engine.answer_scores(micro_batch))


def teacher_scorer(teacher: Any, batcher: TeacherBatcher, device: torch.device) -> Scores:
    """Make a scorer by a teacher that is a model; ``batcher`` holds its side of the held-out examples."""

    def scores(micro_batch: MicroBatch) -> tuple[SideBatch, Tensor]:
        side = batcher.batch(micro_batch.examples).to(device)
        return side, teacher.answer_scores(side)

    return scores


def stored_scorer(teacher: TeacherSource, batcher: TeacherBatcher, device: torch.device) -> Scores:
    """Make a scorer by a stored teacher of the held-out examples.

    The most probable token's probability is known if the store's temperature is 1; otherwise it is NaN.
    """

    def scores(micro_batch: MicroBatch) -> tuple[SideBatch, Tensor]:
        side = batcher.batch(micro_batch.examples).to(device)
        said = TeacherTokens.cat(teacher.answers(micro_batch.examples, 0))
        tops = said.spectrum.head[:, 0].log() if said.spectrum.temperature == 1 else said.log_probs * float("nan")
        return side, torch.stack([said.log_probs, tops.to(said.log_probs)], 1).to(device)

    return scores
