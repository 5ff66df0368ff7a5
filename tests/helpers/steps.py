"""Some steps of training, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.helpers.engines import window_of
from uld_ds.data.sampling import step_examples
from uld_ds.runs.job import Job
from uld_ds.training.engine import DistillationEngine


def steps(engine: DistillationEngine, job: Job, batcher: Any, numbers: range) -> list[float]:
    """Losses of some steps."""
    every = (np.asarray(step_examples(step, len(batcher), 8, 0)) for step in numbers)
    return [engine.train_step(window_of(job, batcher, indices, engine.ranks)).loss for indices in every]
