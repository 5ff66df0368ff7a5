"""An fp32 student under ZeRO-3 is its own master copy, and learns the same as with a copy of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.engines import build, prepared_job, window_of
from tests.helpers.ranks import run_on_ranks
from uld_ds.runs.job import Job
from uld_ds.training import engines


def two_steps(config: dict[str, Any], shared: bool) -> tuple[list[torch.Tensor], int, bool]:
    job = Job.from_config(config)
    if not shared:
        engines.share_fp32_weights = lambda _optimizer: 0
    engine, batcher = build(job)
    optimizer = engine.student.optimizer
    for _ in range(2):
        engine.train_step(window_of(job, batcher, np.asarray([3, 11, 0, 25]), engine.ranks))
    flat = [shard.clone() for shard in optimizer.fp16_partitioned_groups_flat]
    pairs = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
    same = [shard.data_ptr() == master.data_ptr() for shard, master in pairs]
    # By now there is nothing left to share.
    return flat, engines.share_fp32_weights(optimizer), all(same)


def both_ways(config: dict[str, Any]) -> list[tuple[list[torch.Tensor], int, bool]]:
    return [two_steps(config, shared) for shared in (True, False)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_copy_learns_like_two(tiny_recipe: dict[str, Any], tmp_path: Path, ranks: int) -> None:
    recipe = tiny_recipe | {
        "training": tiny_recipe["training"] | {"batch_size": 4, "micro_batch_size": 1},
        "cluster": tiny_recipe["cluster"] | {"workers": ranks},
        "student": tiny_recipe["student"] | {"precision": "fp32"},
    }
    job = prepared_job(recipe, tmp_path)
    for (weights, left, is_shared), (wanted, _, never_shared) in run_on_ranks(both_ways, ranks, job.to_config()):
        assert is_shared and not never_shared and left == 0
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, wanted, strict=True))


class Optimizer:
    """As much of DeepSpeed's as is looked at."""

    def __init__(self, shard: torch.Tensor | None, master: torch.Tensor) -> None:
        self.fp16_partitioned_groups_flat = [shard]
        self.fp32_partitioned_groups_flat = [nn.Parameter(master)]


def test_only_what_is_alike_is_shared() -> None:
    shard = torch.arange(8.0)
    assert engines.share_fp32_weights(Optimizer(shard, shard.clone())) == 32
    assert engines.share_fp32_weights(Optimizer(shard.bfloat16(), shard.clone())) == 0
    assert engines.share_fp32_weights(Optimizer(shard, shard[:4].clone())) == 0
    assert engines.share_fp32_weights(Optimizer(None, shard.clone())) == 0
    assert engines.share_fp32_weights(object()) == 0
