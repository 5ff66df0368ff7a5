"""Checkpoints of a trainer as plain folders, without Ray: every one is kept, and the latest is restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from uld_ds.checkpointing.deepspeed_state import host_state, load_state
from uld_ds.checkpointing.files import write_shard
from uld_ds.checkpointing.state import TrainState
from uld_ds.utils.distributed import Ranks


class FileCheckpoints:
    """A ``Checkpointer`` over a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ranks = Ranks.current()

    def restore(self, student: Any, warn: Callable[[str], None]) -> TrainState | None:
        found = sorted(self._folder.glob("step*"))
        if not found:
            return None
        _, client = load_state(student, found[-1], self._ranks)
        return TrainState(**client["uld_ds"])

    def save(self, student: Any, state: TrainState, metrics: dict[str, Any], *, best: bool = False) -> None:
        folder = self._folder / f"step{state.step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(folder, self._ranks.rank, self._ranks.size, host_state(student, state))
        self._ranks.barrier()

    def wait(self) -> None:
        pass
