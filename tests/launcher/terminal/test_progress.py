"""A run's progress on a terminal and in a log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from launcher.terminal.progress import ProgressView
from uld_ds.runs.progress import ProgressWriter


def metrics(loss: float) -> dict[str, float]:
    return {"train/loss": loss, "train/bits_per_byte": 2.0, "tokens_per_second": 1234.5, "seconds/total": 3.0}


LONG = "loading the teacher" + " very long" * 12


def shown(file: Path, *, terminal: bool) -> str:
    out = io.StringIO()
    with ProgressView(file, Console(file=out, force_terminal=terminal, width=100, highlight=False)) as view:
        view.note("run [bold]x[/] :100:")
        writer = ProgressWriter(file)
        writer.stage(LONG)
        for step in range(1, 5):
            writer.step(step, 4, metrics(10.0 - step))
        writer.evaluation(4, "after", 1.23456)
    return out.getvalue()


def test_plain_lines_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(tmp_path / "a.jsonl", terminal=False).splitlines() == [
        "run [bold]x[/] :100:",
        LONG,
        # The first and the last step; in between one line in ten seconds.
        "step 1/4  loss 9.000  bits/byte 2.000  1,234 tokens/s  9 s left",
        "step 4/4  loss 6.000  bits/byte 2.000  1,234 tokens/s  0 s left",
        "held-out bits per byte, after: 1.2346",
    ]
    monkeypatch.setattr("launcher.terminal.progress.SECONDS_BETWEEN_LINES", 0.0)
    assert shown(tmp_path / "b.jsonl", terminal=False).count("step ") == 4


def test_what_needs_a_look_is_said(tmp_path: Path) -> None:
    file, out = tmp_path / "a.jsonl", io.StringIO()
    with ProgressView(file, Console(file=out, width=100, highlight=False)):
        writer = ProgressWriter(file)
        writer.skipped(3, 9, "the loss is nan", [f"train.jsonl line {number}" for number in range(1, 11)])
        writer.warning("loss 7 is high")
    assert out.getvalue().splitlines() == [
        "warning: step 3 was skipped: the loss is nan, training examples: "
        + ", ".join(f"train.jsonl line {number}" for number in range(1, 9))
        + ", ...",
        "warning: loss 7 is high",
    ]


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    text = shown(tmp_path / "a.jsonl", terminal=True)
    assert "4/4" in text
    assert "loss 6.000  bits/byte 2.000  1,234 tokens/s" in text
    assert "held-out bits per byte, after: 1.2346" in text
