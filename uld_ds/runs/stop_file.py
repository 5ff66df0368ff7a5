"""The file that tells a run to stop: in its folder, made by whoever sees the folder and read by the ranks.

A file needs no port and no address, and reaches ranks on any node because they share the folder anyway.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from uld_ds.runs.folder import RunFolder
from uld_ds.utils.distributed import Ranks


class StopFile:
    """A request to the ranks of a run to write a checkpoint and leave.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = RunFolder(run_dir).stop

    def ask(self) -> None:
        """Ask the run to stop."""
        self._file.touch()

    def is_asked(self) -> bool:
        """Tell whether somebody has asked the run to stop."""
        # A listing: network file systems may remember for a while that a name did not exist.
        return self._file.name in os.listdir(self._file.parent)  # noqa: PTH208 (names are enough)

    def clear(self) -> None:
        """Take the request to stop back."""
        self._file.unlink(missing_ok=True)

    def is_agreed(self, ranks: Ranks, device: torch.device) -> bool:
        """Tell whether all ranks stop now. Collective: only the first one looks, so that all see the same."""
        asked = ranks.is_first and self.is_asked()
        return bool(ranks.max(torch.tensor(int(asked), device=device)))
