"""How far a run is, from its folder or from a job's log."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus
from rich.console import Console

from launcher.drivers.preflight import writable_folder
from launcher.jobs.follow import exit_status
from launcher.jobs.inside import short_stop
from launcher.jobs.listing import Progress, of_folder, of_log
from launcher.terminal.progress import ProgressView, parse_line
from uld_ds.errors import UserError
from uld_ds.runs.progress import ProgressWriter


def metrics(loss: float, seconds: float) -> dict[str, float]:
    return {"train/loss": loss, "train/bits_per_byte": 1.5, "tokens_per_second": 1234.0, "seconds/total": seconds}


def test_a_folder_says_every_step(tmp_path: Path) -> None:
    assert of_folder(tmp_path) is None
    writer = ProgressWriter(tmp_path / "progress.jsonl")
    writer.stage("loading the teacher")
    assert of_folder(tmp_path) == Progress("run folder", doing="loading the teacher")
    for step, seconds in enumerate([100.0, *[2.0] * 20, 50.0, 2.0], 1):
        writer.step(step, 30, metrics(1 / step, seconds))
    assert of_folder(tmp_path) == Progress("run folder", 23, 30, 1 / 23, 14.0)
    writer.step(30, 30, metrics(0.5, 2.0))
    writer.stage("exporting the student")
    assert of_folder(tmp_path) == Progress("run folder", 30, 30, 0.5, 0.0, "exporting the student")


def test_a_log_says_what_was_printed_there(tmp_path: Path) -> None:
    """The very lines that the command prints where there is no terminal."""
    out = io.StringIO()
    with ProgressView(tmp_path / "progress.jsonl", Console(file=out)) as view:
        writer = ProgressWriter(tmp_path / "progress.jsonl")
        view.note("looking at models and data")
        writer.step(7, 7000, metrics(1.25, 3.0))
    assert of_log(out.getvalue()) == Progress("job log", 7, 7000, 1.25, 20979.0)
    assert of_log(out.getvalue() + "writing a checkpoint\n") == Progress(
        "job log", 7, 7000, 1.25, 20979.0, "writing a checkpoint"
    )
    assert of_log("looking at models\n") == Progress("job log", doing="looking at models")
    assert of_log("") == Progress("job log")


def test_lines_of_other_kinds_of_work_are_steps_too() -> None:
    found = parse_line("step 3/10  6 shards  5 s left")
    assert found is not None
    assert (found.step, found.total, found.loss, found.seconds_left) == (3, 10, None, 5.0)
    assert parse_line("step by step") is None


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 2, 2), ("FAILED", 143, 143), ("FAILED", -9, 137),
        ("FAILED", None, 1), ("STOPPED", None, 143),
    ],
)  # fmt: skip
def test_a_jobs_status_is_the_commands(status: str, code: int | None, expected: int) -> None:
    job: Any = SimpleNamespace(status=JobStatus(status), driver_exit_code=code)
    assert exit_status(job) == expected


def test_inside_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative folder is no place for a run, and a stop that would be too quick is announced."""
    monkeypatch.chdir(tmp_path)
    assert writable_folder(Path("runs/a"), "run.storage") == tmp_path / "runs" / "a"
    assert short_stop(120) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"^run.storage: 'runs/a' is relative: in a job it lies in a copy of the work"):
        writable_folder(Path("runs/a"), "run.storage")
    message = short_stop(120)
    assert message is not None
    assert message.startswith("`ray job stop` kills this job after 3 s, a last checkpoint may take 120")
    assert "RAY_JOB_STOP_WAIT_TIME_S=150" in message
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "150")
    assert short_stop(120) is None
