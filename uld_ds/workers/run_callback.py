"""Callbacks that record a run: metrics for MLflow, progress for whoever watches, snapshots for the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from uld_ds.checkpointing.state import TrainState
from uld_ds.evaluation.held_out import Evaluation
from uld_ds.runs.job import Job
from uld_ds.runs.progress import ProgressWriter
from uld_ds.tracking.recorder import Recorder
from uld_ds.training.assembly import Assembly
from uld_ds.training.callbacks import TrainerCallback, Who
from uld_ds.training.skipped_steps import SkippedSteps
from uld_ds.training.step_result import StepResult
from uld_ds.utils.distributed import Ranks
from uld_ds.workers.report_snapshots import ReportKeeper, shown_rows

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
        self._rows = shown_rows(job)
        self._keeper = ReportKeeper(
            job, self._rows, parts.shown, parts.tokenizer, ranks=ranks, device=parts.engine.device
        )

    def on_start(self, state: TrainState, total_steps: int, *, resumed: bool) -> None:
        """Keep the shown examples as text, once per run."""
        if not resumed:
            self._keeper.beginning(self._parts.teacher.tokenizer)

    def on_evaluation(self, state: TrainState, who: Who, evaluation: Evaluation | None) -> None:
        """Keep distributions and calibration of the teacher, and of the student before and after."""
        calibration = None if evaluation is None else evaluation.calibration
        if who == "teacher":
            self._keeper.teacher(self._parts.teacher, self._parts.engine.teacher, self._rows, calibration)
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

    def on_start(self, state: TrainState, total_steps: int, *, resumed: bool) -> None:
        """Begin the record of this attempt, and of the data where it is the first one."""
        self._total = total_steps
        self._progress.start(state.step, total_steps, self._num_ranks)
        if not resumed:
            facts = self._job.split("train").facts
            self._recorder.metrics(0, {f"data/{name}": getattr(facts, name) for name in _DATA_FACTS})

    def on_evaluation(self, state: TrainState, who: Who, evaluation: Evaluation | None) -> None:
        """Record a model's held-out bits per byte."""
        if evaluation is None:
            return
        name = "eval/teacher_bits_per_byte" if who == "teacher" else "eval/bits_per_byte"
        metrics = {name: evaluation.bits_per_byte, f"seconds/evaluation_{who}": evaluation.seconds}
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

    def before_checkpoint(self, state: TrainState) -> None:
        """Put metrics on the disk: no step behind a checkpoint is computed again."""
        self._recorder.sync()

    def on_checkpoint(self, state: TrainState, seconds: float) -> None:
        """Record how long a checkpoint held training up."""
        self._recorder.metrics(state.step, {"seconds/checkpoint": seconds})


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
