"""Submission of a recipe to a cluster, as a job of Ray."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobDetails, JobSubmissionClient

from launcher.cluster.connect import RUN_DIR, RUN_NAME
from launcher.jobs.client import api_errors
from launcher.jobs.environment import check_overrides, job_environment, referenced_variables
from launcher.jobs.files import MAX_BYTES, check_size, secret_files, travelling_files, write_archive
from launcher.jobs.paths import check_shared_paths, inside_root, travelling_paths
from uld_ds.errors import RunError, UserError
from uld_ds.recipe import Recipe, load_recipe

_UNKNOWN_HERE = "/set-on-the-cluster"
_MOST_JOBS_OF_A_RUN = 1000
# A dashboard takes requests some seconds before the nodes' agents, which start jobs, are there.
_SECONDS_FOR_AN_AGENT = 120.0


@dataclass(frozen=True)
class Submission:
    """A job that can be sent: checked, and with everything that it needs."""

    recipe: Recipe
    command: str
    """Command that the cluster runs, in the job's copy of the working directory."""
    files: dict[str, Path]
    """Names in the working directory -> files."""
    num_bytes: int
    environment: dict[str, str]
    notes: list[str]
    """Notes for the user before it is sent."""


def prepare_submission(
    recipe_file: Path, overrides: Sequence[str], *, root: Path, exclude: Sequence[str], environment: Sequence[str]
) -> Submission:
    """Check all that can be checked without the cluster, and collect what the job needs.

    Args:
        recipe_file: in ``root``.
        overrides: ``key=value``, as of ``uld-ds train``.
        root: the working directory.
        exclude: patterns of what stays behind.
        environment: variables to send: ``NAME`` or ``NAME=VALUE``.

    Raises:
        UserError: the recipe, a file or a variable cannot be used for a job.
    """
    if not root.is_dir():
        raise UserError("--working-dir", f"no folder {str(root)!r}", "name the folder that the job is to have")
    root = Path(os.path.abspath(root))  # noqa: PTH100 (keeps links)
    check_overrides(overrides)
    unknown = [] if not recipe_file.is_file() else referenced_variables(recipe_file)
    recipe = _load(recipe_file, overrides, unknown)
    file = inside_root(recipe_file, root, "recipe")
    check_shared_paths(recipe)
    variables = job_environment(environment, recipe.cluster.grace_seconds)
    files = travelling_files(root, exclude, also=[file, *travelling_paths(recipe, root)])
    words = ["python", "-m", "launcher", "train", file.relative_to(root).as_posix()]
    for override in overrides:
        words += ["--set", override]
    return Submission(
        recipe, shlex.join(words), files, check_size(root, files), variables, _notes(root, files, unknown, variables)
    )


def _notes(root: Path, files: dict[str, Path], referenced: list[str], variables: dict[str, str]) -> list[str]:
    notes = []
    if secrets := secret_files(root, files):
        notes.append(f"not sent, they may hold secrets: {', '.join(secrets)}")
    if theirs := [name for name in referenced if name not in variables]:
        notes.append(f"the recipe takes from the cluster's own environment: {', '.join(theirs)}")
    return notes


def _load(file: Path, overrides: Sequence[str], referenced: Sequence[str]) -> Recipe:
    """Load the recipe, with a stand-in for what only the cluster's environment has."""
    with _stand_ins([name for name in referenced if name not in os.environ]) as names:
        try:
            return load_recipe(file, overrides)
        except UserError as error:
            if not names:
                raise
            problem = f"{error} (not set here: {', '.join(names)})"
            raise UserError("recipe", problem, "set them here, too, if they decide it") from error


@contextmanager
def _stand_ins(names: list[str]) -> Iterator[list[str]]:
    os.environ.update(dict.fromkeys(names, _UNKNOWN_HERE))
    try:
        yield names
    finally:
        for name in names:
            del os.environ[name]


def send(client: JobSubmissionClient, submission: Submission, note: Callable[[str], None]) -> str:
    """Upload the files, start the job and return its id.

    The id is the run's name, or that with ``-2``, ``-3`` when it was used.

    Raises:
        UserError: the run is under way already.
        RunError: the cluster does not take it.
    """
    name = submission.recipe.run.name
    with api_errors():
        jobs = client.list_jobs()
    _check_idle(submission.recipe, jobs)
    note(f"sending {len(submission.files):,} files, {submission.num_bytes / 2**20:.1f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "working-dir.zip"
        write_archive(submission.files, archive)
        if archive.stat().st_size > MAX_BYTES:
            raise UserError("--working-dir", "is too large", "leave more out with --exclude")
        environment: dict[str, object] = {"working_dir": str(archive), "env_vars": submission.environment}
        for job_id in _ids(name, {job.submission_id for job in jobs}):
            try:
                return _submit(client, submission, job_id, environment, note)
            except RunError as error:
                # Somebody took the name since the list was made.
                if "already exists" not in str(error):
                    raise
    raise RunError(f"{_MOST_JOBS_OF_A_RUN} jobs are named {name!r}; set another run.name")


def _submit(
    client: JobSubmissionClient,
    submission: Submission,
    job_id: str,
    environment: dict[str, object],
    note: Callable[[str], None],
) -> str:
    deadline = time.monotonic() + _SECONDS_FOR_AN_AGENT
    waiting = False
    while True:
        try:
            with api_errors():
                return client.submit_job(
                    entrypoint=submission.command,
                    submission_id=job_id,
                    runtime_env=environment,
                    metadata=_metadata(submission.recipe),
                )
        except RunError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        if not waiting:
            note("waiting for the cluster: it has only just started")
        waiting = True
        time.sleep(1)


def _ids(name: str, used: set[str | None]) -> Iterator[str]:
    candidates = [name, *(f"{name}-{number}" for number in range(2, _MOST_JOBS_OF_A_RUN))]
    return (candidate for candidate in candidates if candidate not in used)


def _metadata(recipe: Recipe) -> dict[str, str]:
    run_dir = str(recipe.run_dir)
    return {RUN_NAME: recipe.run.name, **({} if _UNKNOWN_HERE in run_dir else {RUN_DIR: run_dir})}


def _check_idle(recipe: Recipe, jobs: Sequence[JobDetails]) -> None:
    """Check that the run is not under way: two drivers of one run would write over each other.

    Raises:
        UserError: it is.
    """
    mine = _metadata(recipe)
    for job in jobs:
        if not job.status.is_terminal() and mine.items() <= (job.metadata or {}).items():
            raise UserError(
                "run.name",
                f"{recipe.run.name!r} is under way as job {job.submission_id or job.job_id!r}",
                "stop that first, or set another run.name",
            )
