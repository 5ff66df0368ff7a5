"""The plan of rounds: which steps a round serves, and which prompts it asks. A pure function of recipe and seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from uld_ds.data.sampling import step_examples

# Given examples are in the order of the seed itself: both at once would be the same prompts twice in a step.
_OWN_ORDER = 1_000_003


@dataclass(frozen=True)
class RoundPlan:
    """The rounds of a run: round r is sampled once, and trained on in ``every`` optimizer steps.

    Nothing here depends on the number of workers, nor on what was answered before.
    """

    every: int
    """Optimizer steps between two rounds."""
    per_step: int
    """Own answers in each step."""
    samples: int
    """Answers to each prompt."""
    num_prompts: int
    """Prompts there are."""
    total_steps: int
    """Optimizer steps of the whole run."""
    seed: int

    @property
    def num_rounds(self) -> int:
        """Rounds of the whole run."""
        return math.ceil(self.total_steps / self.every)

    def round_of(self, step: int) -> int:
        """Return the round that optimizer step ``step``, counted from 0, learns from."""
        return step // self.every

    def first_step(self, number: int) -> int:
        """Return the first step that learns from a round."""
        return number * self.every

    def num_slots(self, number: int) -> int:
        """Count the answers of a round: as many as its steps learn from."""
        steps = min(self.every, self.total_steps - self.first_step(number))
        return max(steps, 0) * self.per_step

    def slots_of_step(self, step: int) -> range:
        """Return the numbers of the answers, within their round, that a step learns from."""
        first = (step - self.first_step(self.round_of(step))) * self.per_step
        return range(first, first + self.per_step)

    def prompts(self, number: int) -> np.ndarray:
        """Choose the prompt of each answer of a round, [num_slots]; answers to one prompt stand together.

        Prompts are asked in an order of their own in each pass over all of them, one round after the other.
        """
        slots = self.num_slots(number)
        per_round = math.ceil(self.every * self.per_step / self.samples)
        chosen = step_examples(number, self.num_prompts, per_round, self.seed + _OWN_ORDER)
        return np.repeat(chosen, self.samples)[:slots]

    def name(self, number: int, slot: int) -> str:
        """Name an answer: what its draws depend on besides the seed."""
        return f"{number}:{slot}"
