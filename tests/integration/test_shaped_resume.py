"""A student of which only a part learns goes on from a checkpoint as if it had never stopped, and is exported whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.engines import build, prepared_job, variant
from tests.helpers.ranks import run_on_ranks
from tests.helpers.steps import steps
from uld_ds.checkpointing.deepspeed_state import _TAG, host_state
from uld_ds.checkpointing.export import export_student
from uld_ds.checkpointing.files import write_shard
from uld_ds.checkpointing.state import TrainState
from uld_ds.runs.job import Job
from uld_ds.training.engine import DistillationEngine

FROZEN = ["model.embed_tokens.*", "model.layers.0.*"]
SHAPES: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "dropout": 0.0}},
    "frozen": {"freeze": FROZEN},
}


def export(engine: DistillationEngine, job: Job, target: Path) -> None:
    export_student(engine.student, AutoTokenizer.from_pretrained(job.student), target, engine.ranks)


def stopped_and_not(configs: dict[str, dict[str, Any]], folder: str) -> dict[str, Any]:
    """Losses of the last two of four steps: of a run that went through, and of one that began anew after two."""
    found: dict[str, Any] = {}
    for name, config in configs.items():
        job, place = Job.from_config(config), Path(folder) / name
        engine, batcher = build(job)
        first = steps(engine, job, batcher, range(2))
        shard = host_state(engine.student, TrainState(step=2))
        write_shard(place / "checkpoint_000000002", engine.ranks.rank, engine.ranks.size, shard)
        through = steps(engine, job, batcher, range(2, 4))
        export(engine, job, place / "through")

        engine, batcher = build(job)
        engine.ranks.barrier()
        path, client = engine.student.load_checkpoint(str(place / "checkpoint_000000002"), tag=_TAG)
        assert path is not None
        assert client["uld_ds"]["step"] == 2
        again = steps(engine, job, batcher, range(2, 4))
        export(engine, job, place / "again")
        found[name] = {"first": first, "through": through, "again": again}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero3", "zero2"])
def test_it_goes_on_bit_for_bit(tiny_recipe: dict[str, Any], tmp_path: Path, stage: str) -> None:
    base = variant(tiny_recipe, workers=2, micro=2, normalize="token", stage=stage)
    configs = {
        name: prepared_job(base | {"student": base["student"] | shape}, tmp_path / f"{name}-data").to_config()
        for name, shape in SHAPES.items()
    }
    found, other = run_on_ranks(stopped_and_not, 2, configs, str(tmp_path))
    assert found == other
    before = AutoModelForCausalLM.from_pretrained(tiny_recipe["student"]["model"]).state_dict()
    for name, losses in found.items():
        assert losses["again"] == losses["through"], name
        assert losses["through"][-1] < losses["first"][0], "nothing was learned"
        through, again = (
            AutoModelForCausalLM.from_pretrained(tmp_path / name / part).state_dict() for part in ("through", "again")
        )
        # A plain model: adapters are in its weights.
        assert through.keys() == again.keys() == before.keys()
        assert all(torch.equal(weight, again[key]) for key, weight in through.items()), name
        changed = {key for key, weight in through.items() if not torch.equal(weight, before[key])}
        if name == "lora":
            assert changed == {key for key in before if "_proj." in key}
        else:
            assert changed == {key for key in before if not key.startswith(("model.embed_tokens.", "model.layers.0."))}
