"""The training loop: steps, held-out evaluations, checkpoints, and an end that can be asked for. It knows no Ray."""

from __future__ import annotations

import enum
import logging
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, set_seed

from uld_ds.batches import MicroBatch
from uld_ds.checkpointing.export import export_trained
from uld_ds.checkpointing.state import TrainState
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.rollouts.summary import RoundJudgment, RoundSummary, ShownAnswer
from uld_ds.runs.phases import with_other
from uld_ds.training.assembly import assemble
from uld_ds.training.callbacks import Checkpointer, Evaluator, History, NoCheckpoints, TrainerCallback, Who
from uld_ds.training.engine import DistillationEngine
from uld_ds.training.local import empty_rounds_folder, prepare_job
from uld_ds.training.loss_spikes import SpikeDetector
from uld_ds.training.progress_bar import ProgressBar
from uld_ds.training.step_result import StepResult
from uld_ds.training.unknown_tail import UnknownTail

log = logging.getLogger(__name__)

_STEPS_AHEAD = 2
"""Steps whose examples a teacher elsewhere is asked about while another one is computed."""


class Batches(Protocol):
    """The data of a run, step by step."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    def window(self, step: int) -> list[MicroBatch]:
        """Make this rank's micro-batches of optimizer step ``step``, counted from 0."""
        ...

    def examples(self, step: int) -> list[int]:
        """List the examples of this rank's micro-batches of a step, which are not made; none where nobody knows yet."""
        ...


class Rounds(Protocol):
    """The rounds of rollouts of a run, for its trainer: `uld_ds.training.rollout_batches.RolloutBatches`."""

    def begin(self, step: int, sign: Callable[[int, int, int], None]) -> RoundSummary | None:
        """Have the answers that a step learns from; return the facts of their round, where it is new. Collective."""
        ...

    def begins_round(self, step: int) -> bool:
        """Tell whether a step, counted from 0, is the first that learns from its round."""
        ...

    def ends_round(self, step: int) -> bool:
        """Tell whether a step, counted from 0, is the last that learns from its round."""
        ...

    def shown(self, examples: Sequence[int], teacher_nats: Sequence[float]) -> list[ShownAnswer]:
        """Return a few answers of a step, of all ranks, with what the teacher makes of them. Collective."""
        ...

    def settle(self) -> None:
        """Wait until nothing is being sampled: a checkpoint is to be made. Collective."""
        ...

    def close(self) -> None:
        """Free what samples."""
        ...


class Outcome(enum.Enum):
    """The ways in which a call of ``Trainer.run`` ends."""

    FINISHED = "finished"
    """All steps are done."""
    STOPPED = "stopped"
    """Training was told to stop, and has left a checkpoint."""
    GAVE_UP = "gave up"
    """Too many steps in a row were not finite; the last checkpoint is good."""


@dataclass(frozen=True)
class TrainResult:
    """The result of training."""

    outcome: Outcome
    state: TrainState
    """State after the last step: losses, tokens, bits per byte before, of the teacher and at the best checkpoint."""
    bits_after: float | None
    """Held-out bits per byte of the trained student; None without held-out examples, or when it did not finish."""


class Trainer:
    """The training of a student from its teacher's outputs, on every rank alike.

    Args:
        engine: does one step of distillation.
        batches: the data of each step.
        recipe: its sections ``training`` and ``evaluation``, and ``run.seed``, say what is done when.
        rounds: rounds of the student's own answers; by default there are none.
        evaluators: measure ``teacher`` and ``student`` on held-out examples; without them nothing is measured.
        checkpoints: keeper of the checkpoints; by default there are none.
        callbacks: told of everything, in order.
        should_stop: asked before each step whether to leave with a checkpoint. Collective.
        profiled: makes a context around each step, given its number from 1.
    """

    def __init__(
        self,
        engine: DistillationEngine,
        batches: Batches,
        recipe: Recipe,
        *,
        rounds: Rounds | None = None,
        evaluators: Mapping[str, Evaluator] | None = None,
        checkpoints: Checkpointer | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        should_stop: Callable[[], bool] = lambda: False,
        profiled: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        self.engine = engine
        self.batches = batches
        self.recipe = recipe
        self.total_steps = batches.num_steps
        self._rounds = rounds
        self._round: RoundSummary | None = None
        self._evaluators = evaluators or {}
        self._checkpoints: Checkpointer = checkpoints or NoCheckpoints()
        self._callbacks = tuple(callbacks)
        self._should_stop = should_stop
        self._profiled = profiled
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.history: list[dict[str, float]] = []
        """Metrics of every step that was applied, with its number as ``step``; kept by trainers of ``from_recipe``."""
        self.rounds: list[dict[str, Any]] = []
        """Facts of every round of the student's own answers; kept by trainers of ``from_recipe``."""

    @classmethod
    def from_recipe(
        cls, recipe: Recipe | Mapping[str, Any], *, callbacks: Sequence[TrainerCallback] | None = None
    ) -> Trainer:
        """Prepare data, load teacher and student, and make a trainer, in this process and without Ray.

        Under ``torchrun`` every process calls this alike and is one rank; a process by itself is the only one. Prepared
        data and cached teacher outputs go where a command's would, into ``run.storage``; there are no checkpoints and
        no MLflow run: ``uld-ds train`` has these.

        Args:
            recipe: a recipe, or its sections as a mapping.
            callbacks: told of everything; by default a progress bar on the first rank.

        Raises:
            UserError: something in the recipe cannot be done; the message names the key and the fix.
            RunError: a model's weights cannot be loaded.
        """
        parsed = recipe if isinstance(recipe, Recipe) else parse_recipe(recipe)
        job, ranks, device = prepare_job(parsed)
        if callbacks is None:
            callbacks = [ProgressBar()] if ranks.is_first else []
        rounds_folder = None if parsed.rollouts is None else empty_rounds_folder(job, ranks)
        parts = assemble(job, ranks=ranks, device=device, rounds_folder=rounds_folder)
        history = History()
        callbacks = [history, UnknownTail(parsed), *callbacks]
        trainer = cls(
            parts.engine, parts.batches, parsed, rounds=parts.rounds, evaluators=parts.evaluators, callbacks=callbacks
        )
        trainer._tokenizer, trainer.history, trainer.rounds = parts.tokenizer, history.steps, history.rounds
        return trainer

    def save(self, folder: str | Path) -> Path:
        """Export the student as a Hugging Face directory: weights, configuration, tokenizer. Collective.

        Args:
            folder: the directory, replaced if it is there; written aside first.

        Raises:
            ValueError: this trainer was made of parts, and knows no tokenizer.
        """
        if self._tokenizer is None:
            raise ValueError("a trainer that was not made by from_recipe knows no tokenizer: call export_student")
        export_trained(self.engine.student, self._tokenizer, self.recipe.student, Path(folder), self.engine.ranks)
        return Path(folder)

    def run(self) -> TrainResult:
        """Train to the end, or until told to stop, resuming from the last checkpoint if there is one. Collective."""
        try:
            return self._run()
        finally:
            if self._rounds is not None:
                self._rounds.close()
            self._tell("on_end")

    def _run(self) -> TrainResult:
        restored = self._checkpoints.restore(self.engine.student, self._warn)
        state = restored or TrainState()
        self._tell("on_start", state, self.total_steps, resumed=restored is not None)
        if restored is None:
            state.bits_teacher = self._evaluate(state, "teacher")
            state.bits_before = self._evaluate(state, "before")
        outcome = self._train(state)
        if outcome is not Outcome.FINISHED:
            self._checkpoints.wait()
            return TrainResult(outcome, state, None)
        return TrainResult(outcome, state, self._evaluate(state, "after"))

    def _train(self, state: TrainState) -> Outcome:
        training, every = self.recipe.training, self.recipe.evaluation.every
        saved = state.step
        while state.step < self.total_steps:
            if self._should_stop():
                self._tell("on_stage", f"told to stop after step {state.step}")
                if state.step > saved:
                    self._save(state)
                return Outcome.STOPPED
            self._begin_round(state)
            self._step(state)
            if state.skipped_in_a_row >= training.max_skipped_steps:
                return Outcome.GAVE_UP
            # Before the checkpoint: a run that resumes from it does not look back.
            bits = None
            if every and state.step % every == 0 and state.step < self.total_steps:
                bits = self._evaluate(state, "student")
            if state.step % training.checkpoint_every == 0 or state.step == self.total_steps:
                self._save(state, bits)
                saved = state.step
        return Outcome.FINISHED

    def _begin_round(self, state: TrainState) -> None:
        """Have the answers that the next step learns from, where the run has rollouts. Collective."""
        if self._rounds is None:
            return
        begin = time.perf_counter()
        summary = self._rounds.begin(
            state.step, lambda number, done, asked: self._tell("on_sampling", state, number, done, asked)
        )
        if summary is not None:
            self._round = summary = replace(summary, held_up=time.perf_counter() - begin)
            self._tell("on_round", state, summary)
        if self._rounds.begins_round(state.step):
            state.round_teacher_nats = state.round_bytes = 0.0

    def _judge(self, state: TrainState, step: int, result: StepResult) -> None:
        """Note what the teacher makes of a step's own answers; tell of the round once they all were trained on."""
        rounds, summary = self._rounds, self._round
        if rounds is None or summary is None:
            return
        if result.rollouts is not None:
            state.round_teacher_nats += result.rollouts.teacher_nats
            state.round_bytes += result.rollouts.bytes
        if rounds.begins_round(step):
            judged = result.judged
            own = ([], []) if judged is None else (judged.examples, judged.teacher_nats.tolist())
            self._tell("on_shown_answers", state, summary.round, rounds.shown(*own))
        if rounds.ends_round(step) and state.round_bytes:
            per_byte = state.round_teacher_nats / state.round_bytes
            judgment = RoundJudgment(summary.round, state.step, per_byte, summary.student_nats_per_byte)
            self._tell("on_round_judged", state, judgment)

    def _step(self, state: TrainState) -> None:
        begin = time.perf_counter()
        # Dropout depends on the step, not on how often the run was restarted.
        set_seed(step_seed(self.recipe.run.seed, state.step, self.engine.ranks.rank))
        window = self.batches.window(state.step)
        self._prefetch(state.step)
        data_seconds = time.perf_counter() - begin
        with self._profiled(state.step + 1):
            result = self.engine.train_step(window)
        seconds = time.perf_counter() - begin
        step = state.step
        state.step += 1
        self._judge(state, step, result)
        state.tokens += result.student_tokens + result.teacher_tokens
        state.train_seconds += seconds
        if result.skipped:
            state.skipped += 1
            state.skipped_in_a_row += 1
            self._tell("on_skipped", state, result)
            return
        state.skipped_in_a_row = 0
        state.final_loss = result.loss
        height = SpikeDetector(self.recipe.training.loss_spike, state.recent_losses).add(result.loss)
        if height is not None:
            self._tell("on_loss_spike", state, height)
        phases = result.seconds | {"data": data_seconds + result.seconds.get("data", 0.0)}
        self._tell("on_step", state, self._metrics(result, with_other(phases, seconds), seconds))

    def _prefetch(self, step: int) -> None:
        """Have teachers elsewhere asked about this step's examples and the next ones', while the student computes."""
        teachings = self.engine.teachings
        if teachings.seconds_waited is not None:
            soon = range(step, step + 1 + _STEPS_AHEAD)
            teachings.prefetch([example for number in soon for example in self.batches.examples(number)])

    def _metrics(self, result: StepResult, phases: Mapping[str, float], seconds: float) -> dict[str, float]:
        return {
            **result.metrics(),
            "tokens_per_second": (result.student_tokens + result.teacher_tokens) / seconds,
            "seconds/total": seconds,
            **{f"seconds/{phase}": value for phase, value in phases.items()},
            "peak_memory_bytes": float(peak_memory_bytes(self.engine.device)),
        }

    def _evaluate(self, state: TrainState, who: Who) -> float | None:
        evaluator = self._evaluators.get("teacher" if who == "teacher" else "student")
        evaluation = None
        if evaluator is not None:
            self._tell("on_stage", f"measuring held-out bits per byte ({who})")
            evaluation = evaluator()
        self._tell("on_evaluation", state, who, evaluation)
        return None if evaluation is None else evaluation.bits_per_byte

    def _save(self, state: TrainState, bits: float | None = None) -> None:
        """Begin to write a checkpoint; ``bits`` are the held-out bits per byte of this very step, where known."""
        best = bits is not None and (state.best_bits is None or bits < state.best_bits)
        if best:
            state.best_bits, state.best_step = bits, state.step
        if self._rounds is not None:
            self._rounds.settle()
        self._tell("before_checkpoint", state)
        begin = time.perf_counter()
        self._checkpoints.save(self.engine.student, state, {"loss": state.final_loss}, best=best)
        # How long training was held up; what is written meanwhile is no part of it.
        self._tell("on_checkpoint", state, time.perf_counter() - begin)

    def _warn(self, text: str) -> None:
        self._tell("on_warning", text)

    def _tell(self, event: str, *arguments: Any, **options: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(*arguments, **options)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Mix a run's seed, a step and a rank into one 32-bit seed."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def peak_memory_bytes(device: torch.device) -> int:
    """Measure the most memory in bytes that this process has held: on its GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
