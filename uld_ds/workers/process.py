"""The setup of a worker process: logs, threads and host memory."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from uld_ds.utils.host_memory import hand_back_large_blocks
from uld_ds.workers.rank_logs import rank_handlers


def configure_process(logs: Path, rank: int, threads: int) -> None:
    """Set up this process: logs of its own, no progress bars, torch's threads, freed memory handed back.

    Args:
        logs: folder of the log files; made if it is not there.
        rank: number in the names of the log files.
        threads: threads of torch.
    """
    logging.basicConfig(level=logging.INFO, handlers=rank_handlers(logs, rank), force=True)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    hand_back_large_blocks()
