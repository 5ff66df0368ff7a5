"""What every worker process sets up for itself."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from uld_ds.utils.host_memory import hand_back_large_blocks
from uld_ds.workers.rank_logs import rank_handlers


def configure_process(logs: Path, rank: int, threads: int) -> None:
    """Logs of this rank in files of its own, no bars, so many threads of torch, no freed memory held."""
    logging.basicConfig(level=logging.INFO, handlers=rank_handlers(logs, rank), force=True)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    hand_back_large_blocks()
