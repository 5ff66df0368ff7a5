"""What rollouts take of a worker that samples itself: memory while it does, and how much there is to sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from launcher.plan.memory import Line, Role, forward_bytes
from uld_ds.recipe import Recipe
from uld_ds.recipe.rollouts import RolloutSettings

# Of each distribution that a token is drawn from, in fp32: log-probabilities, scaled ones, probabilities, their sums.
_DRAWING = 4 * 4


@dataclass(frozen=True)
class Round:
    """How much a round of rollouts samples."""

    answers: int
    """Answers of the round, over all workers."""
    steps: int
    """Optimizer steps that they are for."""
    batches: int
    """Batches that they are sampled in, over all workers."""
    batches_of_worker: int
    """Batches of the worker that has most, one after the other."""
    max_new_tokens: int
    """Forwards of each batch, at most."""

    @property
    def answers_per_step(self) -> float:
        """Answers that an optimizer step trains on."""
        return self.answers / self.steps


def round_of(recipe: Recipe) -> Round | None:
    """Count what a round of a recipe's rollouts samples; None without any."""
    rollouts = recipe.rollouts
    if rollouts is None:
        return None
    answers = rollouts.every * recipe.own_examples
    batches = -(-answers // rollouts.batch_size)
    samplers = rollouts.actors.count if rollouts.engine == "vllm" else recipe.cluster.workers
    return Round(answers, rollouts.every, batches, -(-batches // samplers), rollouts.max_new_tokens)


def sampling_lines(role: Role, rollouts: RolloutSettings, *, longest: int, answers: int) -> Iterator[Line]:
    """List what a worker takes for rollouts; nothing where actors beside the workers sample.

    Args:
        role: the student.
        rollouts: the recipe's rollouts.
        longest: tokens of a prompt and its answer, at most.
        answers: of a round.
    """
    if rollouts.engine != "transformers":
        return
    shape, batch = role.shape, min(rollouts.batch_size, answers)
    # Sampled ahead, it is there beside all that training needs.
    moment: Literal["always", "sampling"] = "always" if rollouts.ahead else "sampling"
    if has_plain_copy(role, rollouts):
        yield Line("student", "plain copy for rollouts", role.weights, moment=moment)
    if role.gathered(backward=False):
        yield Line("student", "a gathered parameter", shape.largest * role.width, moment="sampling")
    cache = batch * longest * shape.layers * 2 * shape.keys * role.width
    yield Line("student", "key-value cache of rollouts", cache, moment=moment)
    prompts = batch * max(longest - rollouts.max_new_tokens, 1)
    drawing = batch * shape.vocab * (role.width + _DRAWING)
    yield Line("student", "a forward of rollouts", max(forward_bytes(role, prompts), drawing), moment=moment)


def has_plain_copy(role: Role, rollouts: RolloutSettings) -> bool:
    """Tell whether each worker samples from a copy of the student: where that is sharded, or trained meanwhile."""
    return role.stage == 3 or bool(rollouts.ahead)
