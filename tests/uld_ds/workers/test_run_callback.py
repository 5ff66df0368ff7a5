"""What rank 0 writes down of rounds: progress, metrics of the right steps, warnings once, and few texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.run_folders import own_round
from uld_ds.checkpointing.state import TrainState
from uld_ds.evaluation.held_out import Evaluation
from uld_ds.rollouts.summary import RoundJudgment, RoundSummary, ShownAnswer
from uld_ds.runs.progress import ProgressWriter, read_events
from uld_ds.runs.rounds import rounds_of
from uld_ds.tracking.journal import Journal, history
from uld_ds.workers import run_callback
from uld_ds.workers.run_callback import RecordCallback


class JournalOnly:
    """The recorder's part that needs no server."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder, "train")

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._journal.write(step, metrics)


def callback_in(folder: Path, *, every: int = 25, total: int = 100) -> RecordCallback:
    job: Any = SimpleNamespace(recipe=SimpleNamespace(rollouts=SimpleNamespace(every=every)))
    recorder: Any = JournalOnly(folder / "metrics")
    skipped: Any = None
    made = RecordCallback(job, recorder, ProgressWriter(folder / "progress.jsonl"), skipped, 2)
    made.on_start(TrainState(), total, resumed=True)
    return made


def events_in(folder: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "progress.jsonl") if event["event"] == name]


def summary(number: int, **facts: Any) -> RoundSummary:
    return RoundSummary(**own_round(number, **facts))


def test_a_round_in_progress_and_metrics(tmp_path: Path) -> None:
    callback = callback_in(tmp_path)
    callback.on_round(TrainState(step=25), summary(1))
    callback.on_round_judged(TrainState(step=50), RoundJudgment(1, 50, 1.25, 0.75))
    (event,) = events_in(tmp_path, "round")
    assert {k: v for k, v in event.items() if k not in ("event", "time")} == own_round(1) | {
        "every": 25,
        "warnings": {},
    }
    (judged,) = events_in(tmp_path, "round_judged")
    assert (judged["round"], judged["step"], judged["kl_per_byte"]) == (1, 50, 0.5)
    found = history(tmp_path / "metrics")
    assert found["rollouts/left_out"] == [(25, 3.0)]
    assert found["rollouts/ended"] == [(25, 0.5)]
    assert found["rollouts/student_nats_per_byte"] == [(25, 0.75)]
    assert found["rollouts/teacher_nats_per_byte"] == [(50, 1.25)]
    assert found["rollouts/kl_per_byte"] == [(50, 0.5)]
    assert found["seconds/round"] == [(25, 8.0)]
    assert found["seconds/round_sampling"] == [(25, 6.0)]


def test_a_round_that_is_told_again_is_one_in_the_charts(tmp_path: Path) -> None:
    callback_in(tmp_path).on_round(TrainState(step=25), summary(1))
    # The next attempt goes on within the round, and has read its answers.
    read = summary(1, seconds={"reading": 0.1}, tokens_per_second=0.0, held_up=0.1)
    callback_in(tmp_path).on_round(TrainState(step=40), read)
    found = history(tmp_path / "metrics")
    assert found["rollouts/tokens"] == [(25, 39.0)]
    assert len(events_in(tmp_path, "round")) == 2
    # What it took is what it took to sample it.
    assert found["seconds/round"] == [(25, 8.0)]
    (event,) = rounds_of(read_events(tmp_path / "progress.jsonl"))
    expected = own_round(1)
    assert {name: event.get(name) for name in expected} == expected


def test_a_collapse_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = callback_in(tmp_path)
    for number, ended in enumerate((0.5, 0.0, 0.0, 0.9, 0.0)):
        callback.on_round(TrainState(), summary(number, ended=ended))
    assert [event["text"][:7] for event in events_in(tmp_path, "warning")] == ["round 1", "round 4"]
    assert [bool(event["warnings"]) for event in events_in(tmp_path, "round")] == [False, True, True, False, True]
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 2


def test_nothing_usable_has_no_nats(tmp_path: Path) -> None:
    callback_in(tmp_path).on_round(TrainState(), summary(0, usable=0, student_nats_per_byte=float("nan")))
    assert "rollouts/student_nats_per_byte" not in history(tmp_path / "metrics")
    (event,) = events_in(tmp_path, "round")
    assert "student_nats_per_byte" not in event


def test_signs_of_life_are_few_and_first_and_last_are_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(run_callback.time, "monotonic", lambda: next(clock) / 4)
    callback = callback_in(tmp_path)
    for done in range(0, 12):
        callback.on_sampling(TrainState(), 0, done, 11)
    assert [event["done"] for event in events_in(tmp_path, "sampling")] == [0, 4, 8, 11]


def test_of_very_many_rounds_some_are_shown(tmp_path: Path) -> None:
    answer = ShownAnswer("p" * 3000, "é" * 3000, False, 1.0, 2.0, 6000)
    callback = callback_in(tmp_path, every=1, total=999)
    for number in range(999):
        callback.on_shown_answers(TrainState(step=number + 1), number, [answer])
    shown = [event["round"] for event in events_in(tmp_path, "rollout_answers")]
    assert shown == [*range(0, 999, 5), 998]
    (kept,) = events_in(tmp_path, "rollout_answers")[0]["answers"]
    assert kept == replace(answer, prompt="…" + "p" * 2000, answer="é" * 2000 + "…").to_json()


def test_what_each_of_several_teachers_measures_has_a_name_that_can_be_a_file_beside_the_mean(tmp_path: Path) -> None:
    callback = callback_in(tmp_path)
    by_teacher = {"general": 1.0, "code": 3.0}
    callback.on_evaluation(TrainState(step=2), "teacher", Evaluation(2.0, 0.1, by_teacher=by_teacher))
    found = {name: points[-1][1] for name, points in history(tmp_path / "metrics").items()}
    assert found.pop("seconds/evaluation_teacher") == 0.1
    assert found == {
        "eval/teacher_bits_per_byte": 2.0,
        "eval/general/teacher_bits_per_byte": 1.0,
        "eval/code/teacher_bits_per_byte": 3.0,
    }
    # MLflow's stores in folders have a file of each metric: none may be a folder of another.
    assert not any(other.startswith(f"{name}/") for name in found for other in found)
