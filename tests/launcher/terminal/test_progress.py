"""A run's progress on a terminal and in a log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from launcher.terminal.progress import ProgressView, parse_line
from tests.helpers.run_folders import own_round
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


def test_a_step_of_own_answers_alone_has_no_bits_per_byte(tmp_path: Path) -> None:
    file, out = tmp_path / "a.jsonl", io.StringIO()
    with ProgressView(file, Console(file=out, width=100, highlight=False)):
        own = {name: value for name, value in metrics(5.0).items() if name != "train/bits_per_byte"}
        ProgressWriter(file).step(1, 4, own)
    assert out.getvalue() == "step 1/4  loss 5.000  1,234 tokens/s  9 s left\n"


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


def rounds(file: Path, *, terminal: bool) -> str:
    out = io.StringIO()
    with ProgressView(file, Console(file=out, force_terminal=terminal, width=200, highlight=False)):
        writer = ProgressWriter(file)
        writer.start(0, 4, workers=1)
        writer.sampling(0, 32, 64)
        writer.round(own_round(0, 2), every=2, warnings={})
        for step in (1, 2):
            writer.step(step, 4, metrics(10.0 - step))
        writer.round_judged({"round": 0, "step": 2, "kl_per_byte": 0.5})
        writer.sampling(1, 32, 64)
        writer.round(own_round(1, 2), every=2, warnings={})
        for step in (3, 4):
            writer.step(step, 4, metrics(10.0 - step))
    return out.getvalue()


def test_rounds_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = "50% ended, {}.0 tokens on average, 96% distinct, 4.0% repeated; 3 left out: 2 empty, 1 not UTF-8"
    lines = rounds(tmp_path / "a.jsonl", terminal=False).splitlines()
    assert lines == [
        "sampling round 0: 32 of 64 own answers",
        f"round 0: 100 answers, {facts.format(40)}",
        # Three steps of three seconds, and a round of eight.
        "step 1/4  loss 9.000  bits/byte 2.000  1,234 tokens/s  17 s left",
        "step 4/4  loss 6.000  bits/byte 2.000  1,234 tokens/s  0 s left",
    ]
    assert parse_line(lines[2]) is not None
    monkeypatch.setattr("launcher.terminal.progress.SECONDS_BETWEEN_LINES", 0.0)
    lines = rounds(tmp_path / "b.jsonl", terminal=False).splitlines()
    assert f"round 1: 100 answers, {facts.format(39)}; KL(student, teacher) 0.5000 in round 0" in lines
    assert sum(line.startswith("sampling") for line in lines) == 2


def test_a_round_that_is_sampled_is_on_the_bar(tmp_path: Path) -> None:
    text = rounds(tmp_path / "a.jsonl", terminal=True)
    assert "sampling round 0: 32 of 64 own answers" in text
    assert "0/4" in text and "4/4" in text
