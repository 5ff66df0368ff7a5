"""The order of examples: which of them an optimizer step sees, and in which micro-batch on which rank.

The order depends on the seed alone, never on the number of ranks: step ``s`` sees the same examples on one
worker as on sixteen. Only how a step's examples are dealt out depends on the ranks.
"""

from __future__ import annotations

import math

import numpy as np

IGNORED = -1
"""Stands for no example among the indices of a step or a micro-batch."""


def num_steps(num_examples: int, batch_size: int, *, epochs: float | None, steps: int | None) -> int:
    """Compute the number of optimizer steps of a run, from its length in epochs or steps."""
    if steps is not None:
        return steps
    assert epochs is not None
    return math.ceil(num_run_examples(num_examples, epochs) / batch_size)


def num_run_examples(num_examples: int, epochs: float) -> int:
    """Compute how many examples a run of so many epochs sees: at least one."""
    return max(1, round(num_examples * epochs))


def step_examples(step: int, num_examples: int, batch_size: int, seed: int, *, total: int | None = None) -> np.ndarray:
    """Draw the [batch_size] indices of the examples of an optimizer step, IGNORED beyond ``total``.

    Epochs follow each other without a gap, each in an order of its own.

    Args:
        step: Number of the step, counted from 0.
        num_examples: Number of examples in the data.
        batch_size: Examples of a step, on all ranks together.
        seed: Seed of the order.
        total: Examples of the whole run (num_run_examples), when its last step may be incomplete.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_examples
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch)]).permutation(num_examples)
        here = epochs == epoch
        indices[here] = order[positions[here] % num_examples]
    if total is not None:
        indices[positions >= total] = IGNORED
    return indices


def deal(indices: np.ndarray, lengths: np.ndarray, *, rank: int, ranks: int, micro_batch_size: int) -> list[np.ndarray]:
    """Choose this rank's micro-batches of a step's examples.

    Examples of similar length share a micro-batch, and ranks get similar ones at the same time, so that little
    is padded and no rank waits long.

    Args:
        indices: [batch_size] examples of the step; IGNORED for none.
        lengths: [num_examples] tokens of every example in the data, both sides together.
        rank: Number of this rank.
        ranks: Number of ranks.
        micro_batch_size: Examples of a micro-batch.

    Returns:
        ``batch_size / (ranks * micro_batch_size)`` arrays of [micro_batch_size] indices.
    """
    key = np.where(indices == IGNORED, -1, lengths[np.maximum(indices, 0)])
    ordered = indices[np.argsort(-key, kind="stable")]
    by_turn = ordered.reshape(-1, ranks * micro_batch_size)
    return [turn[rank::ranks] for turn in by_turn]
