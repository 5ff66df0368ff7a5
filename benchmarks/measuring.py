"""Seconds, memory and ratios that a busy machine cannot falsify: what benchmarks on whole tensors share."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

# The quickest ratio a spread allows may be off by this factor either way.
MEANINGFUL = 1.5


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
