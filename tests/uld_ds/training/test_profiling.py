"""A window of PyTorch's profiler: the steps asked for, and no others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from uld_ds.training.profiling import StepProfiler


def test_only_the_steps_asked_for_are_recorded(tmp_path: Path) -> None:
    profiler = StepProfiler([2], tmp_path / "profile", torch.device("cpu"))
    for step in (1, 2, 3):
        with profiler.step(step):
            torch.ones(8, 8) @ torch.ones(8, 8)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "step-000002.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert "aten::mm" in {event.get("name") for event in events}
