"""Memory over many steps: DeepSpeed engines have leaked in the past."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.ranks import run_on_ranks
from tests.uld_ds.test_engine import build, prepared_job, variant, window_of
from uld_ds.data.order import step_examples
from uld_ds.host_memory import hand_back_large_blocks, return_free_memory
from uld_ds.job import Job

STEPS = 500


def resident_bytes_over_steps(config: dict[str, Any]) -> list[int]:
    """Resident bytes of this rank after every 50th step, teacher and student running in each."""
    job = Job.from_config(config)
    hand_back_large_blocks()
    engine, batcher = build(job)
    process, found = psutil.Process(), []
    for step in range(1, STEPS + 1):
        indices = step_examples(step, len(batcher), 8, 0)
        assert not engine.train_step(window_of(job, batcher, np.asarray(indices), engine.ranks)).skipped
        if step % 50 == 0:
            return_free_memory()
            found.append(process.memory_info().rss)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_500_steps(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    job = prepared_job(variant(tiny_recipe, workers=2, micro=2, normalise="token", stage="zero3"), tmp_path)
    for found in run_on_ranks(resident_bytes_over_steps, 2, job.to_config()):
        print([round(value / 2**20, 1) for value in found])
        # After the first hundred steps every cache is warm. Between the middles of two halves lie 200 steps: two
        # megabytes would be ten kilobytes a step. An allocator that takes a block once is no leak.
        assert statistics.median(found[6:]) - statistics.median(found[2:6]) < 2 * 2**20
