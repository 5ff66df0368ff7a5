"""Progress of a run on a person's screen: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from launcher.terminal.rollouts import round_text
from uld_ds.runs.progress import ProgressReader
from uld_ds.runs.rounds import RECENT_ROUNDS, sampling_text, seconds_of_rounds_left

SECONDS_BETWEEN_LINES = 10.0


class ProgressView:
    """A view of a run's progress file, followed in a thread and shown on standard error."""

    def __init__(self, file: Path, console: Console | None = None) -> None:
        self._reader = ProgressReader(file)
        self._console = console or Console(stderr=True, highlight=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._bar: Progress | None = None
        self._last_line = 0.0
        self._last_round_line = -SECONDS_BETWEEN_LINES
        self._step, self._total = 0, 0
        self._rounds: list[dict[str, Any]] = []
        self._judged: dict[str, Any] | None = None

    def __enter__(self) -> ProgressView:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line for the person at the terminal, once."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def _follow(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(0.3)
            for event in self._reader.new_events():
                self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        if event["event"] == "stage":
            self.note(event["text"])
        elif event["event"] == "evaluation":
            self.note(f"held-out bits per byte, {event['who']}: {event['bits_per_byte']:.4f}")
        elif event["event"] == "warning":
            self.note(f"warning: {event['text']}")
        elif event["event"] == "skipped":
            self.note(f"warning: step {event['step']} was skipped: {event['reason']}, {_of(event['places'])}")
        elif event["event"] == "start":
            self._step, self._total = event["step"], event["total"]
        elif event["event"] == "sampling":
            self._show_sampling(event)
        elif event["event"] == "round":
            self._show_round(event)
        elif event["event"] == "round_judged":
            self._judged = event
        elif event["event"] == "step":
            self._step, self._total = event["step"], event["total"]
            if self._console.is_terminal:
                self._advance_bar(_facts(event))
            else:
                self._print_line(event)

    def _show_sampling(self, event: dict[str, Any]) -> None:
        """Show how far the sampling of a round is: on the bar, or as a line in ten seconds."""
        now = time.monotonic()
        if self._console.is_terminal and self._total:
            self._advance_bar(sampling_text(event), at_once=True)
        elif now - self._last_round_line >= SECONDS_BETWEEN_LINES:
            self._last_round_line = now
            self.note(sampling_text(event))

    def _show_round(self, event: dict[str, Any]) -> None:
        """Print what a round is like; of rounds that follow one another fast, one in ten seconds."""
        self._rounds = [*self._rounds[1 - RECENT_ROUNDS :], event]
        now = time.monotonic()
        if event["round"] == 0 or now - self._last_round_line >= SECONDS_BETWEEN_LINES:
            self._last_round_line = now
            self.note(round_text(event, self._judged))

    def _advance_bar(self, facts: str, *, at_once: bool = False) -> None:
        if self._bar is None:
            self._bar = Progress(
                # Sized to fit 80 columns: what is cut off first would be the time left.
                BarColumn(bar_width=10),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self._console,
            )
            self._bar.add_task("training", total=self._total, facts="")
            self._bar.start()
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=self._step, total=self._total, facts=facts, refresh=at_once)
        if self._step == self._total:
            self._bar.stop()
            self._bar = None

    def _print_line(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        last = event["step"] == event["total"]
        if now - self._last_line < SECONDS_BETWEEN_LINES and not last and event["step"] > 1:
            return
        self._last_line = now
        rounds = seconds_of_rounds_left(self._rounds, event["total"]) or 0.0
        left = (event["total"] - event["step"]) * event["seconds/total"] + rounds
        self._console.print(
            f"step {event['step']}/{event['total']}  {_facts(event)}  {left:.0f} s left", soft_wrap=True
        )


def _of(places: list[str]) -> str:
    return f"training examples: {', '.join(places[:8])}{', ...' if len(places) > 8 else ''}"


@dataclass(frozen=True)
class PrintedStep:
    """The facts of a step that a plain line holds."""

    step: int
    total: int
    loss: float | None
    seconds_left: float


def parse_line(line: str) -> PrintedStep | None:
    """Read a step as it was printed where there is no terminal; None for any other line."""
    found = re.fullmatch(r"step (\d+)/(\d+)  (?:loss (\S+)  )?.*  (\d+) s left", line.strip())
    if found is None:
        return None
    step, total, loss, left = found.groups()
    return PrintedStep(int(step), int(total), None if loss is None else float(loss), float(left))


def _facts(event: dict[str, Any]) -> str:
    if "text" in event:
        return str(event["text"])
    # A step of own answers alone has no bits per byte of given ones.
    bits = event.get("train/bits_per_byte")
    of_given = "" if bits is None else f"bits/byte {bits:.3f}  "
    return f"loss {event['train/loss']:.3f}  {of_given}{event['tokens_per_second']:,.0f} tokens/s"
