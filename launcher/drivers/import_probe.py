"""Whether libraries can be imported, and what torch says of itself and its devices: asked in a process of its own.

A broken library may not only raise but end the process that imports it, or never come back. This module imports none
of them itself; as a program (``python -m launcher.drivers.import_probe NAME...``) it does, and writes a line of JSON
before and after each.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

_SECONDS = 300
_LONGEST_PROBLEM = 200


@dataclass
class Imports:
    """What came of importing libraries."""

    problems: dict[str, str] = field(default_factory=dict)
    """Module -> why it cannot be imported, in one line; those that can be are not in it."""
    torch: dict[str, Any] | None = None
    """What torch says of itself and its devices; None where it was not asked for or cannot be imported."""


def probe_imports(modules: Sequence[str], seconds: float = _SECONDS) -> Imports:
    """Import every one of ``modules``, each after the ones before it, in another process.

    Args:
        modules: names as ``import`` takes them.
        seconds: for all of them; then the one that is going on is given up. The rest is tried again after an import
            that has not ended, or has ended the process.
    """
    found = Imports()
    left = list(modules)
    while left:
        lines, end = _run([*left], seconds)
        begun = left[0]
        for line in lines:
            if "begin" in line:
                begun = line["begin"]
            elif "torch" in line:
                found.torch = line["torch"]
            else:
                left.remove(line["done"])
                if line["problem"] is not None:
                    found.problems[line["done"]] = line["problem"]
        if begun in left:
            left.remove(begun)
            found.problems[begun] = end
    return found


def _run(modules: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Import in another process; return the lines that it wrote, and how it ended."""
    command = [sys.executable, "-m", __name__, *modules]
    try:
        # What libraries write themselves is of no use here.
        done = subprocess.run(  # noqa: S603 (this module, with names of libraries)
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        written, end = late.stdout or b"", f"its import has not ended after {seconds:g} s"
    else:
        code = done.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        written, end = done.stdout, f"its import ends the process ({how})"
    whole = [line for line in written.splitlines(keepends=True) if line.endswith(b"\n")]
    return [json.loads(line) for line in whole], end


def _import_all(modules: Sequence[str], out: TextIO) -> None:
    for module in modules:
        _write(out, {"begin": module})
        problem = None
        try:
            importlib.import_module(module)
            if module == "torch":
                _write(out, {"torch": _torch_facts()})
        except (Exception, SystemExit) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_PROBLEM]
        _write(out, {"done": module, "problem": problem})


def _write(out: TextIO, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _torch_facts() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available() and torch.cuda.nccl.version()
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        # Which of its CPU kernels it takes: others add up in another order.
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [_gpu(torch, index) for index in range(torch.cuda.device_count())],
    }


def _gpu(torch: Any, index: int) -> dict[str, Any]:
    device = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "name": device.name,
        "memory_bytes": device.total_memory,
        "capability": f"{device.major}.{device.minor}",
        "bf16": bf16,
    }


if __name__ == "__main__":
    # Banners of libraries must not come between the lines.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as _out:
        os.dup2(2, 1)
        _import_all(sys.argv[1:], _out)
        _out.flush()
        # Not through the libraries' own farewells, which may fail, too.
        os._exit(0)
