"""Memory over many steps: DeepSpeed engines have leaked in the past."""

from __future__ import annotations

import ctypes
import statistics
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest

from tests.helpers.engines import build, prepared_job, variant, window_of
from tests.helpers.ranks import run_on_ranks
from uld_ds.data.sampling import step_examples
from uld_ds.runs.job import Job
from uld_ds.utils.host_memory import hand_back_large_blocks, return_free_memory

STEPS = 500


class Mallinfo2(ctypes.Structure):
    """What glibc (2.33 and later) says of its heaps; see mallinfo(3)."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def bytes_in_use() -> int:
    """What has been allocated and not freed: in the heaps, and in blocks of their own."""
    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def bytes_over_steps(config: dict[str, Any]) -> list[tuple[int, int]]:
    """Bytes in use and resident ones of this rank after every 50th step, teacher and student running in each."""
    job = Job.from_config(config)
    hand_back_large_blocks()
    engine, batcher = build(job)
    process, found = psutil.Process(), []
    for step in range(1, STEPS + 1):
        indices = step_examples(step, len(batcher), 8, 0)
        assert not engine.train_step(window_of(job, batcher, np.asarray(indices), engine.ranks)).skipped
        if step % 50 == 0:
            return_free_memory()
            found.append((bytes_in_use(), process.memory_info().rss))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_500_steps(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    job = prepared_job(variant(tiny_recipe, workers=2, micro=2, normalize="token", stage="zero3"), tmp_path)
    for found in run_on_ranks(bytes_over_steps, 2, job.to_config()):
        in_use, resident = ([samples[kind] / 2**20 for samples in found] for kind in (0, 1))
        print([round(value, 2) for value in in_use], [round(value, 1) for value in resident])
        # After the first hundred steps every cache is warm; between the middles of two halves lie 200 steps, and two
        # megabytes would be ten kilobytes a step. What is resident moves by some megabytes as heaps take and return
        # blocks, and back: it tells large leaks alone.
        assert statistics.median(in_use[6:]) - statistics.median(in_use[2:6]) < 2
        assert statistics.median(resident[6:]) - statistics.median(resident[2:6]) < 16
