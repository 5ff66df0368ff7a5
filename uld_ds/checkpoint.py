"""Saving and restoring a run's state. Ray's report is the commit point: what it has not taken does not exist."""

from __future__ import annotations

import argparse
import io
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from uld_ds.checkpoint_files import (
    HostState,
    best_name,
    folder_name,
    keep_best,
    num_ranks,
    on_host,
    problem_of,
    remove_others,
    step_of,
    write_shard,
)
from uld_ds.distributed import Ranks
from uld_ds.errors import FinalError, RunError
from uld_ds.quantised import base_digest, is_quantised, learning, load_learning

log = logging.getLogger(__name__)

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray's own list, in the run's folder, of what it has taken."""
_TAG = "state"
_UNIVERSAL = ".universal"
_BASE = "frozen_digest"


@dataclass
class TrainState:
    """What the engines do not know of themselves."""

    step: int = 0
    """Optimizer steps done."""
    bits_before: float | None = None
    bits_teacher: float | None = None
    final_loss: float | None = None
    tokens: int = 0
    """Student and teacher tokens processed."""
    train_seconds: float = 0.0
    """Spent in steps, over all attempts."""
    skipped: int = 0
    """Steps that changed nothing, because something in them was not finite."""
    skipped_in_a_row: int = 0
    """Of them, those right before the next step."""
    recent_losses: list[float] = field(default_factory=list)
    """What loss spikes are measured against, oldest first."""
    best_bits: float | None = None
    """Lowest held-out bits per byte at a checkpoint."""
    best_step: int | None = None


class _HostCopy(CheckpointEngine):
    """Takes what DeepSpeed would write to files, as copies on the host."""

    def __init__(self, folder: str, kept: set[str] | None) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._kept = kept
        """Of the module; None: all of it."""
        self.state: HostState = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        """There is nothing to make."""

    def save(self, state_dict: Any, path: str) -> None:
        if self._kept is not None and "module" in state_dict:
            module = {name: tensor for name, tensor in state_dict["module"].items() if name in self._kept}
            state_dict = state_dict | {"module": module}
        self.state[str(Path(path).relative_to(self._folder))] = on_host(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("copies are taken, not read")

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


@dataclass
class _Write:
    """One checkpoint on its way to storage."""

    best: bool
    done: threading.Event = field(default_factory=threading.Event)
    folder: Path | None = None
    error: BaseException | None = None


class Checkpoints:
    """A run's checkpoints, written while training goes on.

    A step is held up while the state is copied to the host's memory, and while an earlier checkpoint is still being
    written. Each rank writes its own shard to where it stays, then tells Ray, which counts a checkpoint once all have.

    Args:
        run_dir: on storage that every rank sees.
        ranks: the process group.
        on_written: called, on this rank's writing thread, with the step and the seconds its shard took.
        on_failed: the same, with what went wrong.
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
        """Copies the state and begins to write it. Collective.

        Args:
            student: the DeepSpeed engine.
            state: saved beside it.
            metrics: reported with the checkpoint.
            best: keep it as the best one, too.

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
            # What is written is not in a folder yet; where it will be, ``upload`` says.
            checkpoint=ray.train.Checkpoint.from_directory(str(self._run_dir)),
            checkpoint_dir_name=folder_name(step, self._run_dir),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=False,
        )

    def wait(self) -> None:
        """Returns when every rank's part of the checkpoint that was begun is on storage. Collective."""
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
        """Loads the latest whole checkpoint into the engine; None when there is none at all. Collective.

        Args:
            student: the DeepSpeed engine.
            warn: told, on every rank, of each checkpoint that is damaged.

        Raises:
            FinalError: every one is damaged, or one of another number of workers cannot be divided anew.
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
        if not student.zero_optimization_partition_weights():
            raise FinalError(
                f"{folder} was made by {made_by} workers, this run has {self._ranks.size}: only a student at ZeRO "
                f"stage 3 goes on with another number; set cluster.workers={made_by}"
            )
        warn(f"checkpoint {folder.name} was made by {made_by} workers: it is divided anew among {self._ranks.size}")
        universal = self._run_dir / _UNIVERSAL
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


def load_state(student: Any, folder: Path, ranks: Ranks) -> tuple[str | None, dict[str, Any]]:
    """Loads what ``host_state`` has taken of as many ranks as there are. Collective.

    Raises:
        FinalError: the weights in 4 bits that it learnt beside are others than those of this run.
    """
    if not is_quantised(student.module):
        return student.load_checkpoint(str(folder), tag=_TAG)
    path, client = student.load_checkpoint(str(folder), tag=_TAG, custom_load_fn=load_learning)
    same = path is None or not ranks.is_first or client[_BASE] == base_digest(student.module)
    if not all(ranks.gather(same)):
        raise FinalError(
            f"{folder.name} was learnt beside other 4-bit weights than those made of student.model now: its files have "
            "changed, or another kind of device rounds them otherwise. Restore the files, go on where the run was, or "
            "set another run.name"
        )
    return path, client


def divide_anew(source: Path, target: Path) -> None:
    """Makes a DeepSpeed checkpoint of any number of ranks one that any other number can load, parameter by parameter.

    Args:
        source: folder of the shards.
        target: made anew.
    """
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    folders = {"input_folder": str(source), "output_folder": str(target), "inject_missing_state": False}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it talks, and draws bars
        ds_to_universal.main(argparse.Namespace(**folders, **options))


def load_divided(student: Any, folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Loads what ``divide_anew`` has put into a folder's subfolder. Collective."""
    groups = student.optimizer.optimizer.param_groups
    decays = [group["weight_decay"] for group in groups]
    # DeepSpeed looks at this when it loads, and writes its usual checkpoints whatever it is.
    student._config.load_universal_checkpoint = True
    try:
        return student.load_checkpoint(str(folder), tag=_TAG)
    finally:
        student._config.load_universal_checkpoint = False
        # It gives every group the settings of the first one: vectors would begin to decay.
        for group, decay in zip(groups, decays, strict=True):
            group["weight_decay"] = decay
        # It gives all groups one and the same step, which each of them would count up in turn.
        for state in student.optimizer.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()


def host_state(student: Any, state: TrainState) -> HostState:
    """A copy, on the host, of all that this rank's shard of a checkpoint holds. Collective."""
    client: dict[str, Any] = {"uld_ds": asdict(state)}
    quantised = is_quantised(student.module)
    kept = learning(student.module) if quantised else None
    if quantised and Ranks.current().is_first:
        client[_BASE] = base_digest(student.module)
    # DeepSpeed leaves scripts beside what it writes; neither is kept.
    with tempfile.TemporaryDirectory() as folder:
        taken = _HostCopy(folder, kept)
        writer, student.checkpoint_engine = student.checkpoint_engine, taken
        try:
            student.save_checkpoint(
                folder, tag=_TAG, client_state=client, save_latest=False, exclude_frozen_parameters=quantised
            )
        finally:
            student.checkpoint_engine = writer
    return taken.state


def committed(run_dir: Path) -> list[str] | None:
    """Names of the checkpoints that Ray has taken and kept, oldest first; None when its list cannot be read."""
    try:
        listed = json.loads((run_dir / SNAPSHOT).read_text())
        return [entry["checkpoint_dir_name"] for entry in listed["checkpoint_results"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        return None
