"""PyTorch's profiler around chosen steps of the first worker."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class StepProfiler:
    """A profiler of chosen optimizer steps; every other step runs as if it were not there.

    Args:
        steps: numbers of optimizer steps, from 1.
        folder: folder for one trace per step; made when the first is written.
        device: device of the models.
    """

    def __init__(self, steps: Collection[int], folder: Path, device: torch.device) -> None:
        self._steps = frozenset(steps)
        self._folder = folder
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Record the body, one optimizer step, if it is a chosen one. The trace opens in Perfetto or chrome://tracing."""
        if number not in self._steps:
            yield
            return
        with profile(activities=self._activities) as recorded:
            yield
        self._folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._folder / f"step-{number:06d}.json.gz"))
