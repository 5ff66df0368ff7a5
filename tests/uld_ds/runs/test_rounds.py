"""The rounds of a run as whoever watches sees them: sampled, judged, repeated after a restart, and still to come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.run_folders import add_rounds, metrics, own_round, running_run
from uld_ds.runs.progress import ProgressWriter, read_events
from uld_ds.runs.rounds import RolloutStatus, judgments_of, rollout_status, rounds_of, shown_answers_of
from uld_ds.runs.status import run_status


def status_of(file: Path, total: int | None = 100) -> RolloutStatus:
    found = rollout_status(list(read_events(file)), total)
    assert found is not None
    return found


def test_a_run_without_rollouts_has_none(tmp_path: Path) -> None:
    run = running_run(tmp_path)
    found = run_status(run)
    assert found.rollouts is None
    assert found.to_json()["rollouts"] is None


def test_rounds_that_go_on(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    ProgressWriter(file).start(0, 100, workers=2)
    add_rounds(file, 3, judged=2)
    found = status_of(file)
    assert (found.rounds, found.total_rounds, found.seconds_per_round, found.seconds_left) == (3, 4, 8.0, 8.0)
    assert found.latest == own_round(2) | {"every": 25, "warnings": {}}
    assert found.judged is not None and found.first_judged is not None
    assert (found.first_judged["round"], found.judged["round"]) == (0, 1)
    assert (found.first_judged["kl_per_byte"], found.judged["kl_per_byte"]) == (1.0, 0.9)
    assert found.shown is not None
    assert (found.shown["round"], found.shown["step"], len(found.shown["answers"])) == (2, 51, 3)
    assert found.sampling is None
    assert json.loads(json.dumps(found.to_json()))["rounds"] == 3
    assert status_of(file, None).seconds_left is None


def test_a_measured_pause_is_what_a_round_costs(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    writer = ProgressWriter(file)
    # Sampled beside training: most of its seconds held nothing up. One that a resumed run read took none.
    for number, pause in enumerate((1.0, 2.0, 4.0, 0.0)):
        writer.round(own_round(number, held_up=pause), every=25, warnings={})
    assert status_of(file, 1000).seconds_per_round == 1.5
    assert status_of(file, 1000).seconds_left == 36 * 1.5
    assert status_of(file, 76).seconds_left == 0.0


def test_the_last_word_on_a_round_counts(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    writer = add_rounds(file, 4)
    # From the checkpoint of step 60, which is within round 2.
    writer.start(60, 100, workers=2)
    events = list(read_events(file))
    assert [event["round"] for event in rounds_of(events)] == [0, 1, 2]
    assert [event["round"] for event in judgments_of(events)] == [0, 1]
    assert [event["round"] for event in shown_answers_of(events)] == [0, 1, 2]
    writer.round(own_round(2, tokens=12.5), every=25, warnings={"ended": "look"})
    (*_, last) = rounds_of(list(read_events(file)))
    assert (last["round"], last["tokens"], last["warnings"]) == (2, 12.5, {"ended": "look"})
    assert len(rounds_of(list(read_events(file)))) == 3


def test_a_restart_at_the_first_step_of_a_round_keeps_it(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    add_rounds(file, 3).start(50, 100, workers=1)
    events = list(read_events(file))
    assert [event["round"] for event in rounds_of(events)] == [0, 1, 2]
    assert [event["round"] for event in judgments_of(events)] == [0, 1]
    assert [event["round"] for event in shown_answers_of(events)] == [0, 1]  # of step 51


def test_a_round_that_is_being_sampled_is_what_a_run_does(tmp_path: Path) -> None:
    run = running_run(tmp_path)
    writer = ProgressWriter(run / "progress.jsonl")
    writer.stage("something else")
    writer.sampling(1, 64, 1280)
    found = run_status(run)
    assert found.doing == "sampling round 1: 64 of 1,280 own answers"
    assert found.rollouts is not None
    assert found.rollouts.sampling == {"round": 1, "done": 64, "asked": 1280}
    assert (found.rollouts.rounds, found.rollouts.latest, found.rollouts.seconds_left) == (0, None, None)
    writer.step(4, 10, metrics(2.6))
    assert run_status(run).doing == "something else"
    writer.sampling(1, 1280, 1280)
    writer.round(own_round(1), every=25, warnings={})
    assert run_status(run).doing == "something else"
    writer.sampling(2, 0, 1280)
    writer.end("KILLED")
    assert run_status(run).doing is None


def test_the_time_left_counts_rounds(tmp_path: Path) -> None:
    run = running_run(tmp_path)
    assert run_status(run).seconds_left == 7 * 10.0
    writer = ProgressWriter(run / "progress.jsonl")
    writer.round(own_round(1, 2), every=2, warnings={})
    # Rounds 2, 3 and 4 of steps 5 to 10.
    assert run_status(run).seconds_left == 7 * 10.0 + 3 * 8.0


def test_what_is_not_finite_is_left_out_of_events(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    writer = ProgressWriter(file)
    writer.round(own_round(0, student_nats_per_byte=float("nan")), every=1, warnings={})
    writer.round_judged({"round": 0, "step": 1, "kl_per_byte": float("inf")})
    assert "NaN" not in file.read_text() and "Infinity" not in file.read_text()
    found = status_of(file)
    assert found.latest is not None and "student_nats_per_byte" not in found.latest
    assert found.judged == {"round": 0, "step": 1}


@pytest.mark.parametrize(("total", "rounds"), [(1, 1), (25, 1), (26, 2), (100, 4)])
def test_the_last_round_may_be_short(tmp_path: Path, total: int, rounds: int) -> None:
    add_rounds(tmp_path / "progress.jsonl", 1)
    assert status_of(tmp_path / "progress.jsonl", total).total_rounds == rounds
