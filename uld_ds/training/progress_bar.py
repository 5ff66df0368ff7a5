"""A progress bar for a trainer in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from uld_ds.checkpointing.state import TrainState
from uld_ds.evaluation.held_out import Evaluation
from uld_ds.rollouts.statistics import CollapseWatch, collapse_of
from uld_ds.rollouts.summary import RoundJudgment, RoundSummary
from uld_ds.training.callbacks import TrainerCallback, Who
from uld_ds.training.step_result import StepResult


class ProgressBar(TrainerCallback):
    """A bar with steps, loss, throughput and time left; held-out evaluations and warnings are printed.

    Args:
        console: console to print on; by default standard error, or the notebook.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._total = 0
        self._watch = CollapseWatch()

    def on_start(self, state: TrainState, total_steps: int, *, resumed: bool) -> None:
        """Begin the bar at the steps that are done."""
        self._total = total_steps
        self._task = self._progress.add_task("steps", total=total_steps, completed=state.step, loss="")
        self._progress.start()

    def on_stage(self, text: str) -> None:
        """Print the stage that takes a while."""
        self._console.print(text, style="dim", highlight=False)

    def on_warning(self, text: str) -> None:
        """Print a warning that a person should look at."""
        self._console.print(f"warning: {text}", style="yellow", highlight=False)

    def on_evaluation(self, state: TrainState, who: Who, evaluation: Evaluation | None) -> None:
        """Print held-out bits per byte."""
        if evaluation is not None:
            about = "teacher" if who == "teacher" else f"student, step {state.step}"
            self._console.print(f"held-out bits per byte ({about}): {evaluation.bits_per_byte:.4f}", highlight=False)

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Move the bar, and show loss and throughput of the step."""
        loss, speed = metrics["train/loss"], metrics["tokens_per_second"]
        self._advance(state, f"loss {loss:.4f}, {speed:,.0f} tokens/s")

    def on_skipped(self, state: TrainState, result: StepResult) -> None:
        """Move the bar, and say that the step changed nothing."""
        self.on_warning(f"step {state.step} was skipped: {result.reason}")
        self._advance(state, "skipped")

    def on_loss_spike(self, state: TrainState, height: float) -> None:
        """Print a warning of the spike."""
        self.on_warning(f"step {state.step}: the loss is {height:.1f} standard deviations above the recent median")

    def on_sampling(self, state: TrainState, number: int, done: int, asked: int) -> None:
        """Show how far the sampling of a round is."""
        self._advance(state, f"round {number}: {done:,} of {asked:,} own answers")

    def on_round(self, state: TrainState, summary: RoundSummary) -> None:
        """Print a warning where the student's own answers collapse."""
        for text in self._watch.news(collapse_of(summary)):
            self.on_warning(text)

    def on_round_judged(self, state: TrainState, judgment: RoundJudgment) -> None:
        """Print how far student and teacher are apart in the student's own answers."""
        said = f"round {judgment.round}: KL(student, teacher) {judgment.kl_per_byte:.4f} nats per byte of own answers"
        self._console.print(said, highlight=False)

    def on_end(self) -> None:
        """End the bar, and give the cursor back."""
        self._progress.stop()

    def _advance(self, state: TrainState, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=state.step, loss=text)
