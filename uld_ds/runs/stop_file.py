"""How a run is told to stop: a file in its folder, which everybody who sees the folder can make and the ranks read.

A file needs no port and no address, and reaches ranks on any node because they share the folder anyway.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from uld_ds.runs.folder import RunFolder
from uld_ds.utils.distributed import Ranks


class StopFile:
    """The request to write a checkpoint and leave.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = RunFolder(run_dir).stop

    def ask(self) -> None:
        """Makes the request."""
        self._file.touch()

    def is_asked(self) -> bool:
        """Whether somebody made it."""
        # A listing: network file systems may remember for a while that a name did not exist.
        return self._file.name in os.listdir(self._file.parent)  # noqa: PTH208 (names are enough)

    def clear(self) -> None:
        """Takes it back."""
        self._file.unlink(missing_ok=True)

    def is_agreed(self, ranks: Ranks, device: torch.device) -> bool:
        """Whether all ranks stop now. Collective: only the first one looks, so that all see the same."""
        asked = ranks.is_first and self.is_asked()
        return bool(ranks.max(torch.tensor(int(asked), device=device)))
