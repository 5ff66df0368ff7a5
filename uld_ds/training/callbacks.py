"""The interfaces between a trainer and its surroundings: callbacks, evaluators, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from uld_ds.checkpointing.state import TrainState
from uld_ds.evaluation.held_out import Evaluation
from uld_ds.rollouts.summary import RoundJudgment, RoundSummary, ShownAnswer
from uld_ds.training.step_result import StepResult

Who = Literal["teacher", "before", "student", "after"]
"""Model that a held-out evaluation measured: the teacher, or the student before, during and after training."""


Evaluator = Callable[[], Evaluation | None]
"""A function that measures a model on held-out examples; None when there is no model to ask. Collective."""


class TrainerCallback:
    """Observer of a training run; every method does nothing until it is overridden.

    Methods are called on every rank alike, so they may communicate, if all ranks do.
    """

    def on_stage(self, text: str) -> None:
        """Hear of a stage that is about to take a while."""

    def on_warning(self, text: str) -> None:
        """Hear of something that a person should look at."""

    def on_start(self, state: TrainState, total_steps: int, *, resumed: bool) -> None:
        """Begin the run: after a checkpoint was restored, or with a student that no step has changed."""

    def on_evaluation(self, state: TrainState, who: Who, evaluation: Evaluation | None) -> None:
        """Take a held-out evaluation of a model; None where there is nothing to measure, or no model to ask."""

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step that was applied; ``state.step`` counts it."""

    def on_skipped(self, state: TrainState, result: StepResult) -> None:
        """Hear of a step that changed nothing, because something in it was not finite."""

    def on_loss_spike(self, state: TrainState, height: float) -> None:
        """Hear of a loss ``height`` robust standard deviations above the recent median."""

    def on_sampling(self, state: TrainState, number: int, done: int, asked: int) -> None:
        """Hear that ``done`` of the ``asked`` own answers of a round are sampled on this rank, which waits for them."""

    def on_round(self, state: TrainState, summary: RoundSummary) -> None:
        """Take the facts of a round of own answers, before the first of them is trained on.

        A run that resumes within a round, or repeats it, takes them again.
        """

    def on_shown_answers(self, state: TrainState, number: int, answers: Sequence[ShownAnswer]) -> None:
        """Take some answers of a round with the nats of student and teacher, after the round's first step.

        It is told before a checkpoint of that step is made: a run that resumes from it does not look back.
        """

    def on_round_judged(self, state: TrainState, judgment: RoundJudgment) -> None:
        """Take what the teacher makes of a round, after the last step that was trained on it."""

    def on_end(self) -> None:
        """Leave: training is over, however it ended."""

    def before_checkpoint(self, state: TrainState) -> None:
        """Put on disk what a run that resumes from this checkpoint will not compute again."""

    def on_checkpoint(self, state: TrainState, seconds: float) -> None:
        """Take the seconds that training was held up by a checkpoint."""


class History(TrainerCallback):
    """Metrics of every applied step and facts of every round, in memory: for runs watched in the same process.

    A run of days keeps none: its steps are lines in its folder.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        """One entry per step, with its number as ``step``."""
        self.rounds: list[dict[str, Any]] = []
        """One entry per round of own answers, with what the teacher makes of it once it was trained on."""

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Keep a step's metrics."""
        self.steps.append({"step": state.step, **metrics})

    def on_round(self, state: TrainState, summary: RoundSummary) -> None:
        """Keep a round's facts."""
        self.rounds.append(summary.to_json())

    def on_round_judged(self, state: TrainState, judgment: RoundJudgment) -> None:
        """Add to a round's facts what the teacher makes of it."""
        if self.rounds and self.rounds[-1]["round"] == judgment.round:
            facts = {"teacher_nats_per_byte": judgment.teacher_nats_per_byte, "kl_per_byte": judgment.kl_per_byte}
            self.rounds[-1] |= facts


class Checkpointer(Protocol):
    """The keeper of a trainer's checkpoints; all methods are collective."""

    def restore(self, student: Any, warn: Callable[[str], None]) -> TrainState | None:
        """Load the latest checkpoint into the engine and return its state; None when there is none."""
        ...

    def save(self, student: Any, state: TrainState, metrics: dict[str, Any], *, best: bool = False) -> None:
        """Begin to write a checkpoint of the step in ``state``; ``best``: keep it as the best one, too."""
        ...

    def wait(self) -> None:
        """Wait until the checkpoint that was begun is written."""
        ...


class NoCheckpoints:
    """A ``Checkpointer`` that keeps nothing: for runs that are short enough to be done again."""

    def restore(self, student: Any, warn: Callable[[str], None]) -> TrainState | None:
        """Return None: there is no checkpoint."""
        return None

    def save(self, student: Any, state: TrainState, metrics: dict[str, Any], *, best: bool = False) -> None:
        """Write no checkpoint."""

    def wait(self) -> None:
        """Return at once: no checkpoint is being written."""
