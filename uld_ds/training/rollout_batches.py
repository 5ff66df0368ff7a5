"""The micro-batches of a run with rollouts: given examples and the student's own answers in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from uld_ds.batches import MicroBatch
from uld_ds.data.batching import Batcher
from uld_ds.data.dealing import Dealer
from uld_ds.data.sampling import num_run_examples, step_examples
from uld_ds.recipe import TrainingSettings
from uld_ds.rollouts.summary import RoundSummary, ShownAnswer
from uld_ds.training.rollouts import Rollouts, Sign
from uld_ds.utils.distributed import Ranks

NUM_SHOWN = 4
"""Answers of each round that are kept for people to look at."""


class RolloutBatches:
    """The windows of a run with rollouts, by step number; examples from ``num_given`` on are own answers.

    Args:
        rollouts: Rounds of the run.
        batcher: Makes the batcher of given and own rows together.
        on_rows: Told of them whenever a round begins: the teacher is asked about them by number.
        training: Length of the run, batch and micro-batch size.
        num_given: Given examples; where every answer is the student's own, those that stand in for missing ones.
        seed: Seed of the order of given examples.
        ranks: Process group; a step sees the same examples whatever its size.
        dealer: Deals a step's examples to this rank's micro-batches.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        batcher: Callable[[Dataset], Batcher],
        on_rows: Callable[[Dataset], None],
        training: TrainingSettings,
        *,
        num_given: int,
        seed: int,
        ranks: Ranks,
        dealer: Dealer,
    ) -> None:
        self.rollouts = rollouts
        self._make = batcher
        self._on_rows = on_rows
        self._training = training
        self._num_given = num_given
        self._given_per_step = training.batch_size - rollouts.plan.per_step
        self._seed = seed
        self._ranks = ranks
        self._dealer = dealer
        self._batcher: Batcher | None = None

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.rollouts.plan.total_steps

    def begin(self, step: int, sign: Sign = lambda *_: None) -> RoundSummary | None:
        """Have the answers that a step learns from; return the facts of their round, where it is new. Collective.

        Args:
            step: Optimizer step, counted from 0.
            sign: Told how far sampling is.
        """
        begun = self.rollouts.begin(step, sign)
        if begun is None:
            return None
        rows, summary = begun
        self._batcher = self._make(rows)
        self._on_rows(rows)
        return summary

    def window(self, step: int) -> list[MicroBatch]:
        """Make this rank's micro-batches of optimizer step ``step``, counted from 0, whose round has begun."""
        batcher, dealt = self._dealt(step)
        return batcher.window(dealt)

    def examples(self, step: int) -> list[int]:
        """List the examples of this rank's micro-batches of a step; none of one whose round has not begun."""
        if step >= self.num_steps or self.rollouts.plan.round_of(step) != self.rollouts.number:
            return []
        batcher, dealt = self._dealt(step)
        return batcher.examples(dealt)

    def _dealt(self, step: int) -> tuple[Batcher, list[np.ndarray]]:
        assert self._batcher is not None, "a round has begun"
        indices = np.concatenate([self._given(step), self.rollouts.examples_of(step)])
        return self._batcher, self._dealer(self._batcher, indices)

    def _given(self, step: int) -> np.ndarray:
        number, per_step, epochs = self._num_given, self._given_per_step, self._training.epochs
        if not per_step:
            return np.zeros(0, np.int64)
        total = None if epochs is None else num_run_examples(number, epochs)
        return step_examples(step, number, per_step, self._seed, total=total)

    def begins_round(self, step: int) -> bool:
        """Tell whether a step is the first that learns from its round."""
        return step == self.rollouts.plan.first_step(self.rollouts.plan.round_of(step))

    def ends_round(self, step: int) -> bool:
        """Tell whether a step is the last that learns from its round."""
        plan = self.rollouts.plan
        return step + 1 == plan.total_steps or plan.round_of(step + 1) != plan.round_of(step)

    def shown(self, examples: Sequence[int], teacher_nats: Sequence[float]) -> list[ShownAnswer]:
        """Return the first answers of a step, with what the teacher makes of them. Collective.

        Args:
            examples: This rank's own answers in the step, by example number.
            teacher_nats: Negative log-probability of each under the teacher.
        """
        judged = dict(zip(examples, teacher_nats, strict=True))
        everywhere = {number: nats for of_rank in self._ranks.gather(judged) for number, nats in of_rank.items()}
        return [self.rollouts.shown(number, everywhere[number]) for number in sorted(everywhere)[:NUM_SHOWN]]

    def settle(self) -> None:
        """Wait until a round that is sampled ahead is on the disk: a checkpoint is to be made. Collective."""
        self.rollouts.settle()

    def close(self) -> None:
        """Free what samples: training is over, however it ended."""
        self.rollouts.close()
