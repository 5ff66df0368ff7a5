"""The micro-batches of each optimizer step on one rank: which examples, in which order, for how many steps."""

from __future__ import annotations

import numpy as np

from uld_ds.batches import MicroBatch
from uld_ds.data.batching import Batcher
from uld_ds.data.dealing import Dealer
from uld_ds.data.sampling import num_run_examples, num_steps, step_examples
from uld_ds.recipe import TrainingSettings


class StepBatches:
    """The windows of a run by step number: a pure function of the data, the settings and the seed.

    Args:
        batcher: Batcher of the training examples.
        training: Length of the run, batch and micro-batch size.
        seed: Seed of the order of examples.
        dealer: Deals a step's examples to this rank's micro-batches; a step sees the same examples on any rank.
    """

    def __init__(self, batcher: Batcher, training: TrainingSettings, *, seed: int, dealer: Dealer) -> None:
        self._batcher = batcher
        self._training = training
        self._seed = seed
        self._dealer = dealer

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        training = self._training
        return num_steps(len(self._batcher), training.batch_size, epochs=training.epochs, steps=training.steps)

    def window(self, step: int) -> list[MicroBatch]:
        """Make this rank's micro-batches of optimizer step ``step``, counted from 0."""
        return self._batcher.window(self._dealt(step))

    def examples(self, step: int) -> list[int]:
        """List the examples of this rank's micro-batches of a step, which are not made; none behind the last step."""
        return self._batcher.examples(self._dealt(step)) if step < self.num_steps else []

    def _dealt(self, step: int) -> list[np.ndarray]:
        training, num_examples = self._training, len(self._batcher)
        total = None if training.epochs is None else num_run_examples(num_examples, training.epochs)
        indices = step_examples(step, num_examples, training.batch_size, self._seed, total=total)
        return self._dealer(self._batcher, indices)
