"""The command as a job of Ray: whether it is one, and how short its stop may be."""

from __future__ import annotations

import os

from launcher.jobs.environment import RAY_STOP_WAIT_SECONDS, STOP_WAIT, stop_wait

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the command of a job, and for nobody else."""


def is_job() -> bool:
    """Tell whether this process is the command of a job."""
    return _JOB_CONFIG in os.environ


def short_stop(grace_seconds: float) -> str | None:
    """Write the warning that stopping this job kills it before its last checkpoint; None when it does not."""
    given = os.environ.get(STOP_WAIT, "")
    seconds = int(given) if given.isdigit() else RAY_STOP_WAIT_SECONDS
    if not is_job() or seconds >= grace_seconds:
        return None
    return (
        f"`ray job stop` kills this job after {seconds} s, a last checkpoint may take {grace_seconds:g} "
        f"(cluster.grace_seconds): submit with {STOP_WAIT}={stop_wait(grace_seconds)} in its env_vars, as "
        "`uld-ds submit` does, or stop it with a file STOP in the run's folder"
    )
