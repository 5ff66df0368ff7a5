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

from uld_ds.runs.progress import ProgressReader

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
        elif event["event"] != "step":
            return
        elif self._console.is_terminal:
            self._advance_bar(event)
        else:
            self._print_line(event)

    def _advance_bar(self, event: dict[str, Any]) -> None:
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
            self._bar.add_task("training", total=event["total"], facts="")
            self._bar.start()
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=event["step"], total=event["total"], facts=_facts(event))
        if event["step"] == event["total"]:
            self._bar.stop()
            self._bar = None

    def _print_line(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        last = event["step"] == event["total"]
        if now - self._last_line < SECONDS_BETWEEN_LINES and not last and event["step"] > 1:
            return
        self._last_line = now
        left = (event["total"] - event["step"]) * event["seconds/total"]
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
    return (
        f"loss {event['train/loss']:.3f}  bits/byte {event['train/bits_per_byte']:.3f}  "
        f"{event['tokens_per_second']:,.0f} tokens/s"
    )
