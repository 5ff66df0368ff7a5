"""Saving and restoring a run's state. Ray's report is the commit point: what it has not taken does not exist."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train

from uld_ds.errors import RunError

_TAG = "state"


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


def save(student: Any, state: TrainState, run_dir: Path, metrics: dict[str, Any]) -> None:
    """Writes every rank's shard aside and hands it to Ray. Collective.

    Args:
        student: the DeepSpeed engine.
        state: saved beside it.
        run_dir: on shared storage; the shard is written there first so that it fits where it must go.
        metrics: reported with the checkpoint.
    """
    staging = run_dir / "staging"
    staging.mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=staging))
    try:
        # DeepSpeed makes folders on rank 0 only, but every rank here writes to its own.
        (aside / _TAG).mkdir()
        student.save_checkpoint(str(aside), tag=_TAG, client_state={"uld_ds": asdict(state)})
        ray.train.report(
            {**metrics, "step": state.step},
            checkpoint=ray.train.Checkpoint.from_directory(str(aside)),
            checkpoint_dir_name=f"checkpoint_{state.step:09d}",
        )
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def restore(student: Any) -> TrainState | None:
    """Loads the latest checkpoint into the engine; None when there is none. Collective.

    Raises:
        RunError: it was made by another number of workers, or cannot be read.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        ranks = len(list((Path(folder) / _TAG).glob("zero_pp_rank_*_optim_states.pt")))
        here = ray.train.get_context().get_world_size()
        if ranks not in (0, here):
            raise RunError(f"{folder} was made by {ranks} workers, this run has {here}: set cluster.workers={ranks}")
        path, client = student.load_checkpoint(folder, tag=_TAG)
        if path is None:
            raise RunError(f"{folder}: cannot be read as a checkpoint of this student")
    return TrainState(**client["uld_ds"])
