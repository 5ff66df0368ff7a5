"""What all benchmarks share: options, how results are written, and figures that a busy machine cannot falsify."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The quickest ratio a spread allows may be off by this factor either way.
MEANINGFUL = 1.5


def add_output_options(parser: argparse.ArgumentParser, *, quick: str) -> None:
    """The options that every benchmark has; ``quick`` says what a short run leaves out."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything measured as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed as Markdown")


def add_trl_options(parser: argparse.ArgumentParser) -> None:
    """Those of benchmarks that measure against TRL."""
    parser.add_argument("--no-trl", dest="with_trl", action="store_false", help="leave TRL out")
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "uld-ds" / "benchmarks"
    parser.add_argument("--cache", type=Path, default=default, metavar="FOLDER", help="where TRL's environment lives")


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Where this runs, in words: processor, cores, memory, versions, and how busy it is."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = f"Python {platform.python_version()}, torch {version('torch')}"
    return f"{model}, {num_cores()} cores, {memory:.0f} GiB; {versions}; load average {os.getloadavg()[0]:.1f}"


def write_results(
    name: str, table: str, results: Any, options: argparse.Namespace, *, notes: Sequence[str] = ()
) -> None:
    """Prints a benchmark's result and writes it where ``add_output_options`` says.

    Args:
        name: of the benchmark.
        table: Markdown.
        results: everything measured, as plain values.
        options: of the command line.
        notes: sentences on how it was measured, after the machine.
    """
    where = machine()
    text = "\n\n".join([". ".join([f"Machine: {where}", *notes]) + ".", table])
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.output:
        record = {"benchmark": name, "arguments": sys.argv[1:], "machine": where, "results": results}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


@dataclass
class Cell:
    """One part at one length."""

    part: str
    tokens: int
    input_bytes: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    skipped: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        return max(self.seconds) / min(self.seconds)


class PeakMemory:
    """The most memory that a block held beyond what was held before it; None where that cannot be known."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.peak: int | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            # Memory that was freed but kept by the allocator would hide what the next part takes.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            import torch

            self.peak = torch.cuda.max_memory_allocated() - self.before
        elif sys.platform == "linux":
            self.peak = max(0, self._status("VmHWM") - self.before)

    @staticmethod
    def _status(name: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
        raise OSError(f"/proc/self/status has no {name}")


def read_bandwidth(device: str) -> float:
    """Bytes per second of summing an array far larger than any cache; the best of five."""
    import torch

    x = torch.ones(1 << 27 if device == "cpu" else 1 << 30, dtype=torch.float32, device=device)
    best = 0.0
    for _ in range(5):
        start = now(device)
        x.sum()
        best = max(best, x.numel() * 4 / (now(device) - start))
    return best


def now(device: str) -> float:
    """Seconds, once everything asked of the device is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def ratio(slow: Cell, fast: Cell) -> str:
    """How many times longer ``slow`` takes than ``fast``, or why that cannot be said."""
    if slow.skipped or fast.skipped:
        return "not measured"
    if len(slow.seconds) < 2 or len(fast.seconds) < 2:
        return "one run only: no ratio"
    middle = slow.median / fast.median
    least = min(slow.seconds) / max(fast.seconds)
    most = max(slow.seconds) / min(fast.seconds)
    if most > MEANINGFUL * middle or least < middle / MEANINGFUL:
        return f"too noisy: between {least:.2g} and {most:.2g}"
    return f"{middle:.2f} ({least:.2f}-{most:.2f})"
