"""Saving and restoring of a run's state. Ray's report is the commit point: what it has not taken does not exist."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train

from uld_ds.checkpointing.deepspeed_state import _TAG, divide_anew, host_state, load_divided, load_state
from uld_ds.checkpointing.files import (
    best_name,
    keep_best,
    num_ranks,
    problem_of,
    remove_others,
    write_shard,
)
from uld_ds.checkpointing.state import TrainState
from uld_ds.errors import FinalError, RunError
from uld_ds.models.quantization import is_quantized
from uld_ds.runs.folder import RunFolder, step_of
from uld_ds.utils.distributed import Ranks

log = logging.getLogger(__name__)


@dataclass
class _Write:
    """One checkpoint on its way to storage."""

    best: bool
    done: threading.Event = field(default_factory=threading.Event)
    folder: Path | None = None
    error: BaseException | None = None


class Checkpoints:
    """The checkpoints of a run, written while training goes on.

    A step is held up while the state is copied to the host's memory, and while an earlier checkpoint is still being
    written. Each rank writes its own shard to where it stays, then tells Ray, which counts a checkpoint once all have.

    Args:
        run_dir: the run's folder, on storage that every rank sees.
        ranks: the process group.
        on_written: called, on this rank's writing thread, with the step and the seconds its shard took.
        on_failed: called, on this rank's writing thread, with what went wrong.
    """

    def __init__(
        self,
        run_dir: Path,
        ranks: Ranks,
        on_written: Callable[[int, float], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._run_dir = run_dir
        self._ranks = ranks
        self._on_written = on_written
        self._on_failed = on_failed
        self._write: _Write | None = None

    def save(self, student: Any, state: TrainState, metrics: dict[str, Any], *, best: bool = False) -> None:
        """Copy the run's state and begin to write it as a checkpoint. Collective.

        Args:
            student: the student's DeepSpeed engine.
            state: what is saved beside the engine's own state.
            metrics: metrics that are reported with the checkpoint.
            best: keep the checkpoint as the best one, too.

        Raises:
            RunError: the checkpoint before it could not be written.
        """
        self.wait()
        copied = host_state(student, state)
        step = state.step
        self._write = write = _Write(best)

        def upload(_: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            begin = time.perf_counter()
            write.folder = self._run_dir / name
            try:
                write_shard(write.folder, self._ranks.rank, self._ranks.size, copied)
            except BaseException as error:
                write.error = error
                self._on_failed(error)
                raise
            finally:
                copied.clear()
                write.done.set()
            self._on_written(step, time.perf_counter() - begin)
            return ray.train.Checkpoint.from_directory(str(write.folder))

        ray.train.report(
            {**metrics, "step": step},
            # The checkpoint has no folder yet; ``upload`` returns the one that it gets.
            checkpoint=ray.train.Checkpoint.from_directory(str(self._run_dir)),
            checkpoint_dir_name=RunFolder(self._run_dir).new_checkpoint(step).name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=False,
        )

    def wait(self) -> None:
        """Wait until every rank's part of the checkpoint that was begun is on storage. Collective.

        Raises:
            RunError: this rank's part could not be written.
        """
        write, self._write = self._write, None
        if write is None:
            return
        write.done.wait()
        if write.error is not None:
            raise RunError(f"a checkpoint could not be written: {write.error}") from write.error
        self._ranks.barrier()
        if write.best and self._ranks.is_first and write.folder is not None:
            keep_best(write.folder)

    def restore(self, student: Any, warn: Callable[[str], None]) -> TrainState | None:
        """Load the latest whole checkpoint into the engine; return its state, None without a checkpoint. Collective.

        Args:
            student: the student's DeepSpeed engine.
            warn: called, on every rank, with a sentence about each checkpoint that is damaged or divided anew.

        Raises:
            FinalError: every checkpoint is damaged, or does not fit this student, or one of another number of workers
                cannot be divided anew.
        """
        names = committed(self._run_dir)
        if self._ranks.is_first and names is not None:
            # What an attempt left half written; nobody else is writing now.
            remove_others(self._run_dir, names)
        self._ranks.barrier()
        latest = ray.train.get_checkpoint()
        if latest is None:
            return None
        names = sorted({*(names or []), Path(latest.path).name}, key=step_of, reverse=True)
        found = self._whole([name for name in names if (self._run_dir / name).is_dir()], warn)
        path, client = self._load(student, found, warn)
        if path is None:
            raise FinalError(f"{found}: cannot be read as a checkpoint of this student")
        state = TrainState(**client["uld_ds"])
        if self._ranks.is_first and state.best_step == state.step and best_name(self._run_dir) != found.name:
            keep_best(found)
        return state

    def _load(self, student: Any, folder: Path, warn: Callable[[str], None]) -> tuple[str | None, dict[str, Any]]:
        made_by = num_ranks(folder)
        if made_by == self._ranks.size:
            return load_state(student, folder, self._ranks)
        if not student.zero_optimization_stage() or is_quantized(student.module):
            raise FinalError(
                f"{folder} was made by {made_by} workers, this run has {self._ranks.size}: a student without ZeRO or "
                f"in 4 bits does not go on with another number; set cluster.workers={made_by}"
            )
        warn(f"checkpoint {folder.name} was made by {made_by} workers: it is divided anew among {self._ranks.size}")
        universal = RunFolder(self._run_dir).universal
        if self._ranks.is_first:
            divide_anew(folder / _TAG, universal / _TAG)
        self._ranks.barrier()
        try:
            return load_divided(student, universal)
        finally:
            self._ranks.barrier()
            if self._ranks.is_first:
                shutil.rmtree(universal, ignore_errors=True)

    def _whole(self, names: list[str], warn: Callable[[str], None]) -> Path:
        damaged: list[str] = []
        for name in names:
            folder = self._run_dir / name
            made_by = num_ranks(folder) or self._ranks.size
            mine = problem_of(folder, range(self._ranks.rank, made_by, self._ranks.size))
            problems = [problem for problem in self._ranks.gather(mine) if problem is not None]
            if not problems:
                return folder
            damaged.append(f"{name}/{problems[0]}")
            warn(f"checkpoint {name} is damaged ({'; '.join(problems)}): the one before it is used")
        raise FinalError(
            f"no checkpoint in {self._run_dir} is whole: {'; '.join(damaged)}. "
            "Remove the folder to start again, or restore its files"
        )


def committed(run_dir: Path) -> list[str] | None:
    """List the checkpoints that Ray has taken and kept, by name, oldest first; None when its list cannot be read."""
    try:
        listed = json.loads(RunFolder(run_dir).checkpoint_list.read_text(encoding="utf-8"))
        return [entry["checkpoint_dir_name"] for entry in listed["checkpoint_results"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        return None
