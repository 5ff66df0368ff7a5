"""Runs a function on several ranks of a real gloo process group, each a process of its own.

A fresh process spends 13 seconds of CPU time on importing torch, DeepSpeed, transformers and what stands on them. So
one process imports them once per test session and does nothing else; every rank is forked from it. Ranks share no
state: none of them runs in that process, and none is used twice.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

# Nothing heavy is imported here: the process that ranks are forked from sets its threads before it imports numpy.
PRELOADED = (
    "pytest",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
    "uld_ds.workers.store",
    "tests.helpers.engines",
)


def run_on_ranks(function: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """Return what ``function(*arguments)`` returned on each rank, in order of rank.

    Args:
        function: defined at the top level of a module, so that another process can import it.
        ranks: number of processes.
        arguments: of the function, alike on all ranks.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a rank raised; the message has its traceback.
        torch.multiprocessing.ProcessExitedException: a rank died.
    """
    import torch

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        _server().run(Request(ranks, folder, environment, [*sys.path], pickle.dumps((function, arguments))))
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(ranks)]


@dataclass(frozen=True)
class Request:
    """What ranks are to run, and where; the function is unpickled (and its module imported) by each rank alone."""

    ranks: int
    folder: str
    environment: dict[str, str]
    path: list[str]
    call: bytes


class RankServer:
    """The process that ranks are forked from, seen from the tests."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def run(self, request: Request) -> None:
        """Run ranks to their end; whatever interrupts this (a test that takes too long) ends them and the server."""
        try:
            self._connection.send(request)
            failure = self._connection.recv()
        except BaseException:
            self._kill()
            raise
        if failure is not None:
            raise failure

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _kill(self) -> None:
        if self.is_alive:
            server = psutil.Process(self._process.pid)
            for process in [*server.children(recursive=True), server]:
                process.kill()
        self.close()


_SERVERS: list[RankServer] = []


def _server() -> RankServer:
    """Return the session's server, started when first asked for (and anew after it was killed)."""
    if not _SERVERS or not _SERVERS[-1].is_alive:
        _SERVERS.append(RankServer())
        atexit.register(_SERVERS[-1].close)
    return _SERVERS[-1]


def _serve(connection: Connection) -> None:
    # A process that forks must have no threads: those of BLAS start when numpy is imported.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    # Nor may it have talked to a GPU, where there is one; DeepSpeed asks whether there is.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for name in PRELOADED:
        importlib.import_module(name)
    import torch.multiprocessing

    # What is here to stay need not be looked through by every rank's garbage collector, nor copied for it.
    gc.collect()
    gc.freeze()
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        assert threading.active_count() == 1, threading.enumerate()
        failure = None
        try:
            torch.multiprocessing.start_processes(_one_rank, (request,), nprocs=request.ranks, start_method="fork")
        except Exception as error:
            failure = error
        connection.send(failure)


def _one_rank(rank: int, request: Request) -> None:
    import torch

    os.environ.clear()
    os.environ.update(request.environment, RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    sys.path[:] = request.path
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=request.ranks)
    from uld_ds.training.engines import init_process_group

    init_process_group(on_gpu=False)
    function, arguments = pickle.loads(request.call)
    torch.save(function(*arguments), Path(request.folder) / str(rank))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # What a rank found is on disk. Threads of the communication library that have not ended yet abort a process that
    # tears itself down ("terminate called without an active exception", seen once).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
