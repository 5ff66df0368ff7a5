"""A checkpoint goes on with another number of ranks, and learns the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.engines import build, prepared_job, variant, window_of
from tests.helpers.ranks import run_on_ranks
from uld_ds.checkpointing.deepspeed_state import _TAG, divide_anew, host_state, load_divided
from uld_ds.checkpointing.files import num_ranks, write_shard
from uld_ds.checkpointing.state import TrainState
from uld_ds.data.sampling import step_examples
from uld_ds.runs.job import Job

BATCH = 12
"""Divided by every number of ranks here, times two examples at a time."""


def train_and_save(config: dict[str, Any], folder: str, steps: int) -> list[float]:
    """Losses of the first steps, and a checkpoint after them."""
    job = Job.from_config(config)
    engine, batcher = build(job)
    losses = []
    for step in range(steps):
        indices = step_examples(step, len(batcher), BATCH, 0)
        losses.append(engine.train_step(window_of(job, batcher, np.asarray(indices), engine.ranks)).loss)
    write_shard(Path(folder), engine.ranks.rank, engine.ranks.size, host_state(engine.student, TrainState(step=steps)))
    return losses


def go_on(config: dict[str, Any], folder: str, steps: int) -> dict[str, Any]:
    """Losses of two more steps, from a checkpoint of as many ranks or of another number."""
    job = Job.from_config(config)
    engine, batcher = build(job)
    universal = Path(folder).parent / f"universal-{engine.ranks.size}"
    same = num_ranks(Path(folder)) == engine.ranks.size
    if not same:
        if engine.ranks.is_first:
            divide_anew(Path(folder) / _TAG, universal / _TAG)
        engine.ranks.barrier()
    _, client = engine.student.load_checkpoint(folder, tag=_TAG) if same else load_divided(engine.student, universal)
    losses, rates = [], []
    for step in range(steps, steps + 2):
        indices = step_examples(step, len(batcher), BATCH, 0)
        result = engine.train_step(window_of(job, batcher, np.asarray(indices), engine.ranks))
        losses.append(result.loss)
        rates.append(result.learning_rate)
    return {"losses": losses, "rates": rates, "step": client["uld_ds"]["step"]}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_ranks_learns_the_same(
    tiny_recipe: dict[str, Any], tmp_path: Path, before: int, after: int
) -> None:
    tiny_recipe["training"]["batch_size"] = BATCH
    config = {
        ranks: prepared_job(
            variant(tiny_recipe, workers=ranks, micro=2, normalize="token", stage="zero3"), tmp_path / str(ranks)
        ).to_config()
        for ranks in (before, after)
    }
    folder = str(tmp_path / "checkpoint_000000003")
    run_on_ranks(train_and_save, before, config[before], folder, 3)
    expected = run_on_ranks(go_on, before, config[before], folder, 3)[0]
    found = run_on_ranks(go_on, after, config[after], folder, 3)[0]
    print(json.dumps({"expected": expected, "found": found}))
    assert found["step"] == expected["step"] == 3
    assert found["rates"] == expected["rates"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
