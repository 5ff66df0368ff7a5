"""Runs a function on several ranks of a real gloo process group, each a process of its own."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing


def run_on_ranks(function: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returned on each rank, in order of rank.

    Args:
        function: defined at the top level of a module, so that a fresh process can import it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_one_rank, (function, ranks, port, folder, arguments), nprocs=ranks)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(ranks)]


def _one_rank(
    rank: int, function: Callable[..., Any], ranks: int, port: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    from uld_ds.training.engines import init_process_group

    init_process_group(on_gpu=False)
    torch.save(function(*arguments), Path(folder) / str(rank))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # What a rank found is on disk. Threads of the communication library that have not ended yet abort a process that
    # tears itself down ("terminate called without an active exception", seen once).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
