"""A real MLflow server on loopback, to be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PORTS = range(5600, 5700)


def free_port() -> int:
    """One that nobody listens on now."""
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port")


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    """Returns when a GET of ``url`` succeeds."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            assert process.poll() is None, f"it ended with {process.returncode}"
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.2)


class Server:
    """``mlflow server`` on sqlite, with artifacts through the server."""

    def __init__(self, folder: Path, port: int | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self.artifacts = folder / "artifacts"
        self.database = folder / "server.db"
        self.port = port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"]
        command += ["--artifacts-destination", self.artifacts.as_uri()]
        variables = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **self._environment,
        }
        with (self._folder / "server.log").open("ab") as log:
            # A group of its own: its worker processes end with it.
            self._process = subprocess.Popen(
                command, start_new_session=True, stdout=log, stderr=subprocess.STDOUT, env=variables
            )
        wait_until_it_answers(f"{self.uri}/health", self._process)

    def kill(self) -> None:
        """As a machine that goes down."""
        if self._process is not None:
            end_group(self._process)
            self._process = None


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that was started with ``start_new_session``, and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
