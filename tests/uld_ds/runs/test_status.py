"""How a run is doing, read from its folder: a run that goes on, one that was restarted, one that is over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.run_folders import metrics, running_run
from uld_ds.runs.phases import OTHER, PHASES, with_other
from uld_ds.runs.progress import ProgressWriter, read_events
from uld_ds.runs.status import RunStatus, run_status, runs_in


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps of ten, a checkpoint after the second."""
    return running_run(tmp_path)


def status_soon(folder: Path, seconds: float = 1.0) -> RunStatus:
    last = list(read_events(folder / "progress.jsonl"))[-1]["time"]
    return run_status(folder, now=last + seconds)


def test_a_run_that_goes_on(run: Path) -> None:
    found = status_soon(run, 30)
    assert (found.name, found.state, found.step, found.total_steps) == ("first", "running", 3, 10)
    assert found.loss == pytest.approx(2.7)
    assert found.seconds_since_last_sign == pytest.approx(30)
    assert (found.seconds_per_step, found.seconds_left, found.tokens_per_second) == (10.0, 70.0, 300.0)
    assert found.student_padding == 0.46
    assert found.held_out_bits_per_byte == {"before": 4.0}
    assert found.last_checkpoint is not None
    assert found.last_checkpoint["step"] == 2
    assert found.last_checkpoint["seconds"] == 1.5
    assert found.last_checkpoint["folder"] == str(run / "checkpoint_000000002")
    assert (found.workers, found.restarts, found.skipped_steps) == (2, 0, 0)
    assert json.loads(json.dumps(found.to_json()))["phase_shares"] == found.phase_shares


def test_shares_of_phases_add_up_to_the_step(run: Path) -> None:
    shares = status_soon(run).phase_shares
    assert list(shares) == [*PHASES, OTHER]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["teacher"] == pytest.approx(0.4)
    assert shares[OTHER] == pytest.approx(0.1)  # 9 of 10 seconds are in a phase


def test_waiting_for_a_teachers_server(run: Path) -> None:
    assert status_soon(run).server_wait is None
    writer = ProgressWriter(run / "progress.jsonl")
    for step, seconds in ((4, 0.5), (5, 1.5)):
        writer.step(step, 10, metrics(2.0) | {"teacher_wait_seconds": seconds})
    # Of the steps that asked a server: 2 of their 20 seconds.
    assert status_soon(run).server_wait == pytest.approx(0.1)


def test_what_is_in_no_phase_is_other() -> None:
    phases = with_other({"data": 1.0, "step": 2.0}, 4.5)
    assert sum(phases.values()) == 4.5
    assert phases[OTHER] == 1.5


def test_a_checkpoint_whose_folder_is_gone_does_not_count(run: Path) -> None:
    (run / "checkpoint_000000002").rmdir()
    assert status_soon(run).last_checkpoint is None


def test_a_restart_goes_on_from_its_checkpoint(run: Path) -> None:
    writer = ProgressWriter(run / "progress.jsonl")
    writer.start(2, 10, workers=2)
    found = status_soon(run)
    assert (found.step, found.restarts) == (2, 1)  # step 3 was lost
    writer.step(3, 10, metrics(9.0))
    found = status_soon(run)
    assert (found.step, found.loss, found.restarts) == (3, 9.0, 1)


def test_a_start_before_any_step(tmp_path: Path) -> None:
    assert run_status(tmp_path).state == "preparing"
    ProgressWriter(tmp_path / "progress.jsonl").start(0, 7, workers=1)
    found = status_soon(tmp_path)
    assert (found.state, found.step, found.total_steps, found.phase_shares) == ("running", 0, 7, {})


@pytest.mark.parametrize(("seconds_per_step", "silent_after"), [(1.0, 120), (60.0, 600)])
def test_a_run_that_says_nothing_for_long(run: Path, seconds_per_step: float, silent_after: int) -> None:
    writer = ProgressWriter(run / "progress.jsonl")
    for step in range(4, 9):
        writer.step(step, 10, metrics(2.0, seconds_per_step))
    assert status_soon(run, silent_after - 1).state == "running"
    assert status_soon(run, silent_after + 1).state == "silent"


def test_a_run_that_failed_says_why_until_it_begins_again(run: Path) -> None:
    writer = ProgressWriter(run / "progress.jsonl")
    writer.end("FAILED", "'first' failed: no space left")
    found = status_soon(run, 1e6)
    assert (found.state, found.reason, found.seconds_left) == ("failed", "'first' failed: no space left", None)
    writer.stage("loading the teacher")
    assert status_soon(run).state == "running"
    writer.end("KILLED")
    assert status_soon(run).state == "killed"


def test_a_run_that_is_finished(run: Path) -> None:
    ProgressWriter(run / "progress.jsonl").end("FINISHED")
    (run / "result.json").write_text("{}")
    assert status_soon(run, 1e6).state == "finished"


def test_half_a_line_hides_nothing_else(run: Path) -> None:
    file = run / "progress.jsonl"
    # A writer that was killed, and the next attempt's first line right behind.
    file.write_text(file.read_text() + '{"time": 1, "eve{"time": 2, "event": "stage", "text": "x"}\n')
    ProgressWriter(file).step(4, 10, metrics(1.0))
    with file.open("a") as stream:
        stream.write('{"time": 3, "event": "st')
    assert status_soon(run).step == 4


def test_skipped_steps_are_counted_once(run: Path) -> None:
    lines: list[dict[str, Any]] = [{"time": 9e9, "event": "skipped", "step": 4, "total": 10}] * 2
    with (run / "progress.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert status_soon(run).skipped_steps == 1


def test_runs_of_a_storage(run: Path) -> None:
    (run.parent / ".prepared").mkdir()
    (run.parent / "other").mkdir()
    # As `uld-ds evaluate` leaves it.
    evaluation = run.parent / "first-evaluation"
    evaluation.mkdir()
    ProgressWriter(evaluation / "progress.jsonl").step(1, 2, metrics(1.0))
    (evaluation / "evaluation.json").write_text("{}")
    assert runs_in(run.parent) == ["first"]
    assert runs_in(run.parent / "nowhere") == []
