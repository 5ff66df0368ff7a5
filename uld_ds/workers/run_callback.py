"""Callbacks that record a run: metrics for MLflow, progress for whoever watches, snapshots for the report."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence

from uld_ds.checkpointing.state import TrainState
from uld_ds.data.batching import Batcher, padding_id
from uld_ds.evaluation.held_out import Evaluation
from uld_ds.rollouts.statistics import CollapseWatch, collapse_of
from uld_ds.rollouts.summary import RoundJudgment, RoundSummary, ShownAnswer
from uld_ds.runs.job import Job
from uld_ds.runs.progress import ProgressWriter
from uld_ds.runs.rounds import TIMES
from uld_ds.tracking.recorder import Recorder
from uld_ds.training.assembly import Assembly
from uld_ds.training.callbacks import TrainerCallback, Who
from uld_ds.training.skipped_steps import SkippedSteps
from uld_ds.training.step_result import StepResult
from uld_ds.utils.distributed import Ranks
from uld_ds.workers.report_snapshots import ReportKeeper

log = logging.getLogger(__name__)

_DATA_FACTS = (
    "examples",
    "answer_bytes",
    "student_tokens",
    "teacher_tokens",
    "segments",
    "alignment_rate",
    "student_tokens_per_segment",
    "teacher_tokens_per_segment",
)
_ROUND_FACTS = (
    "answers",
    "usable",
    "ended",
    "tokens",
    "bytes",
    "distinct",
    "repeated",
    "student_nats_per_byte",
    "tokens_per_second",
)
_SECONDS_BETWEEN_SIGNS = 1.0
# What a run writes down of its own answers for people to look at: rounds, and characters of each text.
_MOST_SHOWN_ROUNDS = 200
_MOST_SHOWN_CHARACTERS = 2000


class StageLog:
    """The log of what a run is busy with: the rank's own, and on the first rank the run's progress, too.

    Args:
        progress: writer of the run's progress on the first rank; None on the others.
    """

    def __init__(self, progress: ProgressWriter | None) -> None:
        self._progress = progress

    def stage(self, text: str) -> None:
        """Log a stage that takes a while."""
        log.info("%s", text)
        if self._progress is not None:
            self._progress.stage(text)

    def warning(self, text: str) -> None:
        """Log a warning that a person should look at."""
        log.warning("%s", text)
        if self._progress is not None:
            self._progress.warning(text)


class SnapshotCallback(TrainerCallback):
    """A callback that keeps what the report shows of the models while they are there. Collective, on every rank alike.

    Args:
        job: the run.
        parts: the run's engines and data.
        ranks: the process group.
    """

    def __init__(self, job: Job, parts: Assembly, ranks: Ranks) -> None:
        self._parts = parts
        self._teacher, self._rows = job.shown_rows()
        shown = parts.shown
        if len(parts.teachers) > 1:
            padding = padding_id(parts.tokenizer)
            shown = Batcher(self._rows, padding=padding, merge=job.recipe.objective.merge)
        self._keeper = ReportKeeper(job, self._rows, shown, parts.tokenizer, ranks=ranks, device=parts.engine.device)

    def on_start(self, state: TrainState, total_steps: int, *, resumed: bool) -> None:
        """Keep the shown examples as text, once per run."""
        if not resumed:
            self._keeper.beginning(self._parts.teachers[self._teacher])

    def on_evaluation(self, state: TrainState, who: Who, evaluation: Evaluation | None) -> None:
        """Keep distributions and calibration of the teacher, and of the student before and after."""
        calibration = None if evaluation is None else evaluation.calibration
        if who == "teacher":
            source = self._parts.engine.teachings.teachers[self._teacher].source
            self._keeper.teacher(self._parts.teachers[self._teacher], source, self._rows, calibration)
        elif who in ("before", "after"):
            self._keeper.student(who, self._parts.engine, calibration)


class RecordCallback(TrainerCallback):
    """A callback that records a run's metrics and progress; on the first rank alone.

    Args:
        job: the run.
        recorder: recorder of metrics on their way to MLflow.
        progress: writer of the run's progress, which is read by whoever watches.
        skipped: file of the run's skipped steps.
        num_ranks: size of the process group.
    """

    def __init__(
        self,
        job: Job,
        recorder: Recorder,
        progress: ProgressWriter,
        skipped: SkippedSteps,
        num_ranks: int,
    ) -> None:
        self._job = job
        self._recorder = recorder
        self._progress = progress
        self._skipped = skipped
        self._num_ranks = num_ranks
        self._total = 0
        self._collapse = CollapseWatch()
        self._last_sign = -math.inf

    def on_start(self, state: TrainState, total_steps: int, *, resumed: bool) -> None:
        """Begin the record of this attempt, and of the data where it is the first one."""
        self._total = total_steps
        self._progress.start(state.step, total_steps, self._num_ranks)
        if not resumed:
            facts = self._job.split("train").facts
            figures = {name: getattr(facts, name) for name in _DATA_FACTS}
            # Of prompts alone, nothing is known of answers.
            self._recorder.metrics(
                0, {f"data/{name}": value for name, value in figures.items() if math.isfinite(value)}
            )

    def on_evaluation(self, state: TrainState, who: Who, evaluation: Evaluation | None) -> None:
        """Record a model's held-out bits per byte."""
        if evaluation is None:
            return
        name = "eval/teacher_bits_per_byte" if who == "teacher" else "eval/bits_per_byte"
        metrics = {name: evaluation.bits_per_byte, f"seconds/evaluation_{who}": evaluation.seconds}
        # Not below the name of the mean: stores of MLflow that are folders have a file of that name.
        metrics |= {f"eval/{own}/teacher_bits_per_byte": bits for own, bits in evaluation.by_teacher.items()}
        self._recorder.metrics(state.step, metrics)
        self._progress.evaluation(state.step, who, evaluation.bits_per_byte)

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        self._recorder.metrics(state.step, metrics)
        self._progress.step(state.step, self._total, dict(metrics))

    def on_skipped(self, state: TrainState, result: StepResult) -> None:
        """Record a step that changed nothing, and name its examples."""
        line = self._skipped.add(state.step, result)
        log.warning("step %d was skipped: %s (%s)", state.step, result.reason, ", ".join(line["places"]))
        self._recorder.metrics(state.step, {"train/skipped_steps": float(state.skipped)})
        self._progress.skipped(state.step, self._total, result.reason, line["places"])

    def on_loss_spike(self, state: TrainState, height: float) -> None:
        """Record a spike of the loss, and warn of it."""
        text = (
            f"step {state.step}: loss {state.final_loss:.4g} is {height:.1f} standard deviations above the recent "
            "median"
        )
        log.warning("%s", text)
        self._progress.warning(text)
        self._recorder.metrics(state.step, {"train/loss_spike": height})

    def on_sampling(self, state: TrainState, number: int, done: int, asked: int) -> None:
        """Record how far the sampling of a round is, about once a second."""
        now = time.monotonic()
        if 0 < done < asked and now - self._last_sign < _SECONDS_BETWEEN_SIGNS:
            return
        self._last_sign = now
        self._progress.sampling(number, done, asked)

    def on_round(self, state: TrainState, summary: RoundSummary) -> None:
        """Record what a round's answers are like, and warn when they collapse."""
        collapse = collapse_of(summary)
        log.info("%s", said_of(summary))
        facts = summary.to_json()
        if not summary.was_sampled:
            # What it took is known of the attempt that has sampled it.
            facts = {name: value for name, value in facts.items() if name not in TIMES}
        self._progress.round(facts, every=self._every, warnings=collapse)
        for text in self._collapse.news(collapse):
            log.warning("%s", text)
            self._progress.warning(text)
        self._recorder.metrics(summary.step, round_metrics(summary))

    def on_shown_answers(self, state: TrainState, number: int, answers: Sequence[ShownAnswer]) -> None:
        """Record some answers of a round; of a run of very many rounds, those of every n-th and of the last."""
        rounds = math.ceil(self._total / self._every)
        if number % math.ceil(rounds / _MOST_SHOWN_ROUNDS) and number != rounds - 1:
            return
        shown = [answer.clipped(_MOST_SHOWN_CHARACTERS).to_json() for answer in answers]
        self._progress.rollout_answers(number, state.step, shown)

    def on_round_judged(self, state: TrainState, judgment: RoundJudgment) -> None:
        """Record what the teacher makes of a round."""
        self._progress.round_judged(judgment.to_json())
        names = ("teacher_nats_per_byte", "kl_per_byte")
        self._recorder.metrics(judgment.step, {f"rollouts/{name}": getattr(judgment, name) for name in names})

    @property
    def _every(self) -> int:
        rollouts = self._job.recipe.rollouts
        assert rollouts is not None, "there are rounds"
        return rollouts.every

    def before_checkpoint(self, state: TrainState) -> None:
        """Put metrics on the disk: no step behind a checkpoint is computed again."""
        self._recorder.sync()

    def on_checkpoint(self, state: TrainState, seconds: float) -> None:
        """Record how long a checkpoint held training up."""
        self._recorder.metrics(state.step, {"seconds/checkpoint": seconds})


def round_metrics(summary: RoundSummary) -> dict[str, float]:
    """Collect the metrics of a round, by the names that MLflow has; of one that was only read, no times."""
    known = {
        **{f"rollouts/{name}": float(getattr(summary, name)) for name in _ROUND_FACTS},
        "rollouts/left_out": float(summary.answers - summary.usable),
    }
    if not summary.was_sampled:
        return {name: value for name, value in known.items() if name != "rollouts/tokens_per_second"}
    return {
        **known,
        **{f"seconds/round_{phase}": seconds for phase, seconds in summary.seconds.items()},
        "seconds/round": summary.pause,
    }


def said_of(summary: RoundSummary) -> str:
    """Sum a round up in one line, for the log."""
    reasons = ", ".join(f"{number} {reason}" for reason, number in summary.left_out.items())
    return (
        f"round {summary.round}: {summary.answers} own answers, {summary.ended:.0%} ended, "
        f"{summary.tokens:.1f} tokens on average, {summary.distinct:.0%} distinct, {summary.repeated:.1%} repeated"
        + (f"; left out: {reasons}" if reasons else "")
    )


class StageCallback(TrainerCallback):
    """A callback that logs stages and warnings, on every rank.

    Args:
        stages: the log that they go to.
    """

    def __init__(self, stages: StageLog) -> None:
        self._stages = stages

    def on_stage(self, text: str) -> None:
        """Log a stage that takes a while."""
        self._stages.stage(text)

    def on_warning(self, text: str) -> None:
        """Log a warning that a person should look at."""
        self._stages.warning(text)
