"""Callbacks in the process that trains: rounds in the history, and on the bar."""

from __future__ import annotations

import io

from rich.console import Console

from tests.helpers.run_folders import own_round
from uld_ds.checkpointing.state import TrainState
from uld_ds.rollouts.summary import RoundJudgment, RoundSummary
from uld_ds.training.callbacks import History, TrainerCallback
from uld_ds.training.progress_bar import ProgressBar


def told(callback: TrainerCallback) -> None:
    """Three rounds, the last of which is not over; answers end less and less."""
    callback.on_start(TrainState(), 60, resumed=False)
    for number, ended in enumerate((0.5, 0.01, 0.0)):
        callback.on_sampling(TrainState(), number, 1000, 2000)
        callback.on_round(TrainState(), RoundSummary(**own_round(number, ended=ended)))
        if number < 2:
            callback.on_round_judged(TrainState(), RoundJudgment(number, 25 * number + 25, 1.25, 0.75))
    callback.on_end()


def test_a_history_of_rounds() -> None:
    history = History()
    told(history)
    assert [facts["round"] for facts in history.rounds] == [0, 1, 2]
    assert history.rounds[1]["kl_per_byte"] == 0.5
    assert history.rounds[1]["teacher_nats_per_byte"] == 1.25
    assert "kl_per_byte" not in history.rounds[2]


def test_a_bar_says_what_needs_a_look() -> None:
    out = io.StringIO()
    told(ProgressBar(Console(file=out, width=200)))
    lines = out.getvalue().splitlines()
    assert "round 1: KL(student, teacher) 0.5000 nats per byte of own answers" in lines
    assert sum(line.startswith("warning: round 1 (step 25): the student ended only 1.0%") for line in lines) == 1
    assert sum(line.startswith("warning: ") for line in lines) == 1  # and is silent while it stays so
