"""The deal of a step's examples to the micro-batches of this rank, by number of examples or by a budget of tokens."""

from __future__ import annotations

import numpy as np

from uld_ds.data.batching import Batcher
from uld_ds.data.sampling import deal
from uld_ds.data.step_plan import Budget, plan_step, work
from uld_ds.recipe import TrainingSettings
from uld_ds.utils.distributed import Ranks

_USUAL_KNEE = 6 * 2048.0


class Dealer:
    """A dealer of the examples of optimizer steps, alike on every rank.

    Args:
        training: Batch and micro-batch size.
        ranks: Process group.
        knee: Length at which attention costs as much as all matrices, 6 times the student's hidden size.
    """

    def __init__(self, training: TrainingSettings, ranks: Ranks, *, knee: float = _USUAL_KNEE) -> None:
        self._training = training
        self._ranks = ranks
        self._knee = knee
        self.padded = False
        """Whether the student pads its micro-batches, which is known once it is loaded; budgets then count padding."""
        self._work: tuple[Batcher, np.ndarray] | None = None

    def __call__(self, batcher: Batcher, indices: np.ndarray) -> list[np.ndarray]:
        """Choose this rank's micro-batches of a step.

        Args:
            batcher: Batcher of the examples.
            indices: [batch_size] examples of the step; IGNORED for none.
        """
        training, ranks = self._training, self._ranks
        if training.micro_batch_tokens is None:
            return deal(
                indices,
                batcher.lengths,
                rank=ranks.rank,
                ranks=ranks.size,
                micro_batch_size=training.micro_batch_size,
            )
        budget = Budget(training.micro_batch_tokens, training.micro_batch_size, padded=self.padded)
        return plan_step(indices, batcher.longest_side, self._work_of(batcher), budget, ranks.size)[ranks.rank]

    def _work_of(self, batcher: Batcher) -> np.ndarray:
        """Estimate the work of every example, [number of rows], once for a batcher."""
        if self._work is None or self._work[0] is not batcher:
            self._work = batcher, work(batcher.lengths.astype(np.float64), self._knee)
        return self._work[1]
