"""Checks of what can be found out before anything expensive starts: folders, disk, ports, configurations."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

from launcher.jobs.inside import is_job
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, load_recipe
from uld_ds.runs.folder import RunFolder
from uld_ds.training.deepspeed_config import read_student_config, student_config, teacher_configs, zero_stage
from uld_ds.utils.files import in_home, write_whole
from uld_ds.utils.redaction import Redactor

# Bytes of a checkpoint per parameter that learns: fp32 weights and two Adam moments; below ZeRO-3, beside them, the
# weights themselves. Frozen ones take less.
CHECKPOINT_BYTES_AT_ZERO_3, CHECKPOINT_BYTES_BELOW = 12, 16


def claim_run_dir(recipe: Recipe) -> Path:
    """Make the run's folder, writable and claimed for this recipe; return it absolute.

    Raises:
        UserError: it cannot be written, or holds a run of another recipe.
    """
    run_dir = writable_folder(recipe.run_dir, "run.storage")
    _claim(recipe, run_dir)
    return run_dir


def writable_folder(folder: Path, key: str) -> Path:
    """Make a folder and check that it can be written; return it absolute.

    Raises:
        UserError: it cannot be written, or goes with the job that this command is.
    """
    if is_job() and not in_home(folder).is_absolute():
        problem = (
            f"{str(folder)!r} is relative: in a job it lies in a copy of the working directory, which goes with it"
        )
        raise UserError(key, problem, "name a folder that every node sees by its absolute path")
    folder = Path(os.path.abspath(in_home(folder)))  # noqa: PTH100 (keeps a shared mount's link names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"uld-ds")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(key, f"cannot write to {str(folder)!r} ({reason})", "name a writable folder") from error
    return folder


def _claim(recipe: Recipe, run_dir: Path) -> None:
    run = RunFolder(run_dir)
    stored = run.recipe
    if not run.run_id.exists():
        # It never got to training: most likely it stopped at a mistake that is corrected now, in the recipe or in the
        # files that it names. What was made of them is made anew (rows that are the same are found again).
        for made in (run.student, run.prepared, run.teacher, run.teacher_precision):
            _remove(made)
    elif stored.is_file() and (difference := _difference(stored, recipe)) is not None:
        problem = f"{recipe.run.name!r} began with another recipe ({difference})"
        raise UserError("run.name", problem, f"set another run.name, or remove {run_dir}")
    # Half of it would be the recipe of another run.
    write_whole(stored, _text(recipe), sync=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _text(recipe: Recipe) -> str:
    """Write the recipe as the run's folder keeps it.

    Secrets that came in by reference do not lie there in the open.
    """
    return recipe.to_yaml(Redactor().tree)


def _without_secrets(recipe: Recipe) -> Recipe:
    # As the stored one was read: a secret that has been renewed makes no other run.
    with tempfile.TemporaryDirectory() as folder:
        (file := RunFolder(Path(folder)).recipe).write_text(_text(recipe), encoding="utf-8")
        return load_recipe(file, environment={})


def _difference(stored: Path, recipe: Recipe) -> str | None:
    try:
        # Without this process's environment: it may be what has changed.
        return load_recipe(stored, environment={}).first_difference(_without_secrets(recipe))
    except UserError as error:
        return f"of another version: {error}"


def check_free_disk(run_dir: Path, recipe: Recipe, num_parameters: int, *, weight_bytes: int | None = None) -> None:
    """Check that the checkpoints of a student of this size fit on the disk.

    Args:
        run_dir: folder of the run.
        recipe: of the run.
        num_parameters: number of parameters that a checkpoint holds.
        weight_bytes: bytes of the student's weights, which decide how it is sharded by default.

    Raises:
        UserError: they do not.
    """
    # One more than is kept, because a checkpoint is complete before an older one goes; and the best one.
    sharded = zero_stage(read_student_config(recipe.student, on_gpu=False, weight_bytes=weight_bytes)) == 3
    each = CHECKPOINT_BYTES_AT_ZERO_3 if sharded else CHECKPOINT_BYTES_BELOW
    needed = num_parameters * (each * (recipe.training.keep_checkpoints + 2) + 8)
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise UserError(
            "run.storage",
            f"{str(run_dir)!r} has {free / 2**30:.1f} GiB free, checkpoints need {needed / 2**30:.1f}",
            "free some, lower training.keep_checkpoints, or store elsewhere",
        )


def check_deepspeed_configs(recipe: Recipe) -> None:
    """Check the DeepSpeed configurations of a recipe, on either kind of device.

    Raises:
        UserError: one would not do.
    """
    for on_gpu in (False, True):
        student_config(recipe, on_gpu=on_gpu)
        teacher_configs(recipe, on_gpu=on_gpu)


def check_port(port: int | None, key: str) -> None:
    """Check that a loopback port that is to be served is free.

    Raises:
        UserError: it is taken.
    """
    if port is None:
        return
    with socket.socket() as probe:
        # A port that was served a minute ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(key, f"port {port} is not free ({error.strerror})", "choose another port") from error
