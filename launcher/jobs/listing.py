"""The runs on a cluster, and how far each is.

How far a run is comes from the run's own ``progress.jsonl`` where this machine sees the run's folder: every step, as it
was made. Elsewhere from the last lines of the job's log, where the command prints a step every ten seconds. Which of
the two is said. A command that was started without the job API has no log there: its folder is the only source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ray.job_submission import JobDetails, JobSubmissionClient

from launcher.cluster.connect import RUN_DIR, RUN_NAME
from launcher.jobs.client import api_errors
from launcher.terminal.progress import parse_line
from uld_ds.runs.folder import RunFolder
from uld_ds.runs.status import run_status

_OURS = re.compile(r"(?:^|\s)-m\s+launcher\s|(?:^|[/\s])uld-ds\s")
_TAIL_CHARACTERS = 64 * 1024


@dataclass(frozen=True)
class Progress:
    """A run's step, loss and time left, and where they were read."""

    source: Literal["run folder", "job log"]
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    seconds_left: float | None = None
    """Seconds for the remaining steps; evaluations and checkpoints among them take longer."""
    doing: str | None = None
    """Its last message, where that is no step."""


@dataclass(frozen=True)
class Listed:
    """A job of this program on a cluster."""

    job: str
    run: str | None
    status: str
    started: str | None
    """Time of its start: UTC, ISO 8601."""
    run_dir: str | None
    progress: Progress | None


def list_runs(client: JobSubmissionClient, *, ended: bool = False) -> list[Listed]:
    """List the cluster's jobs that are runs of this program, the latest first.

    Args:
        client: of the cluster.
        ended: also list those that have ended.

    Raises:
        RunError: the cluster does not answer.
    """
    with api_errors():
        jobs = client.list_jobs()
    ours = [job for job in jobs if _is_ours(job) and (ended or not job.status.is_terminal())]
    return [_listed(client, job) for job in sorted(ours, key=lambda job: -(job.start_time or 0))]


def _is_ours(job: JobDetails) -> bool:
    return RUN_DIR in (job.metadata or {}) or RUN_NAME in (job.metadata or {}) or bool(_OURS.search(job.entrypoint))


def _listed(client: JobSubmissionClient, job: JobDetails) -> Listed:
    metadata = job.metadata or {}
    run_dir = metadata.get(RUN_DIR)
    # The folder of a job that has ended may be another job's by now.
    progress = None if run_dir is None or job.status.is_terminal() else of_folder(Path(run_dir))
    if progress is None and job.submission_id is not None:
        with api_errors():
            progress = of_log(client.get_job_logs(job.submission_id))
    begun = None if job.start_time is None else datetime.fromtimestamp(job.start_time / 1000, UTC)
    return Listed(
        job=job.submission_id or job.job_id or "-",
        run=metadata.get(RUN_NAME),
        status=job.status.value,
        started=None if begun is None else begun.isoformat(timespec="seconds"),
        run_dir=run_dir,
        progress=progress,
    )


def of_folder(run_dir: Path) -> Progress | None:
    """Read progress from a run's folder; None where this machine does not see it."""
    if not RunFolder(run_dir).progress.is_file():
        return None
    status = run_status(run_dir)
    # What it did before a step is over.
    stepping = status.step is not None and 0 < status.step < (status.total_steps or 0)
    doing = None if stepping else status.doing
    return Progress("run folder", status.step, status.total_steps, status.loss, status.seconds_left, doing)


def of_log(log: str) -> Progress:
    """Read progress from the last lines of a job's log."""
    lines = [line for line in log[-_TAIL_CHARACTERS:].splitlines() if line.strip()]
    for number, line in enumerate(reversed(lines)):
        step = parse_line(line)
        if step is not None:
            doing = lines[-1] if number else None
            return Progress("job log", step.step, step.total, step.loss, step.seconds_left, doing)
    return Progress("job log", doing=lines[-1] if lines else None)
