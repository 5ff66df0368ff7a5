"""A checkpoint goes on with another number of ranks, and learns the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.engines import build, prepared_job, variant, window_of
from tests.helpers.ranks import run_on_ranks
from uld_ds.checkpointing.deepspeed_state import _TAG, divide_anew, host_state, load_divided, load_state
from uld_ds.checkpointing.files import num_ranks, write_shard
from uld_ds.checkpointing.state import TrainState
from uld_ds.data.sampling import step_examples
from uld_ds.errors import FinalError
from uld_ds.runs.job import Job
from uld_ds.training.deepspeed_config import read_config

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
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_ranks_learns_the_same(
    tiny_recipe: dict[str, Any], tmp_path: Path, before: int, after: int, stage: str
) -> None:
    tiny_recipe["training"]["batch_size"] = BATCH
    config = {
        ranks: prepared_job(
            variant(tiny_recipe, workers=ranks, micro=2, normalize="token", stage=stage), tmp_path / str(ranks)
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


def changed(source: Path, target: Path) -> str:
    """A copy of a model whose weights are all others."""
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-1.5)
    shutil.copytree(source, target)
    model.save_pretrained(target)
    return str(target)


def marked(config: dict[str, Any], value: float) -> Any:
    """An engine with a buffer, as BART and others have one, and its training examples."""
    engine, batcher = build(Job.from_config(config))
    engine.student.module.register_buffer("mark", torch.tensor([value, 3.0]))
    return engine, batcher


def one_step(engine: Any, config: dict[str, Any], batcher: Any) -> float:
    indices = np.asarray(step_examples(2, len(batcher), BATCH, 0))
    return float(engine.train_step(window_of(Job.from_config(config), batcher, indices, engine.ranks)).loss)


def saved_after_two(configs: dict[str, dict[str, Any]], folder: str) -> None:
    for name, config in configs.items():
        engine, batcher = marked(config, 7.0)
        for step in range(2):
            indices = np.asarray(step_examples(step, len(batcher), BATCH, 0))
            engine.train_step(window_of(Job.from_config(config), batcher, indices, engine.ranks))
        state = host_state(engine.student, TrainState(step=2))
        write_shard(Path(folder) / name, engine.ranks.rank, engine.ranks.size, state)


def resumed(configs: dict[str, dict[str, Any]], folder: str) -> dict[str, dict[str, Any]]:
    """The next step's loss and all weights after it, from checkpoints of as many ranks or of another number."""
    found = {}
    for name, config in configs.items():
        engine, batcher = marked(config, 0.0)
        engine.ranks.barrier()
        restored = load_any(engine, Path(folder) / name)
        assert restored is not None
        loss = one_step(engine, config, batcher)
        sharded = engine.student.zero_optimization_partition_weights()
        whole = (
            engine.student._zero3_consolidated_16bit_state_dict()
            if sharded
            else {key: weight.clone() for key, weight in engine.student.module.state_dict().items()}
        )
        found[name] = {"loss": loss, "weights": whole, "mark": engine.student.module.mark.tolist()}
    return found


def load_any(engine: Any, folder: Path) -> str | None:
    if num_ranks(folder) == engine.ranks.size:
        path, _ = load_state(engine.student, folder, engine.ranks)
        return path
    universal = folder.with_name(f"{folder.name}-{engine.ranks.size}")
    if engine.ranks.is_first:
        divide_anew(folder / _TAG, universal / _TAG)
    engine.ranks.barrier()
    return load_divided(engine.student, universal)[0]


def refusals(configs: dict[str, dict[str, Any]], folder: str) -> list[str]:
    """What is said where something else is frozen than in the checkpoint."""
    said = []
    for config in configs.values():
        engine, _ = marked(config, 0.0)
        with pytest.raises(FinalError) as caught:
            load_any(engine, Path(folder) / "frozen")
        said.append(str(caught.value))
    return said


FROZEN = ["model.embed_tokens.*", "model.layers.0.*"]


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("after", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_what_does_not_learn_is_the_checkpoints(
    tiny_recipe: dict[str, Any], tmp_path: Path, after: int, stage: str
) -> None:
    """Also where the student's files have changed since; DeepSpeed's universal format leaves it out."""
    tiny_recipe["training"]["batch_size"] = BATCH
    shapes: dict[str, dict[str, Any]] = {"frozen": {"freeze": FROZEN}, "lora": {"lora": {"rank": 4, "dropout": 0.0}}}
    other = changed(Path(tiny_recipe["student"]["model"]), tmp_path / "other")

    def configs(ranks: int, **student: Any) -> dict[str, dict[str, Any]]:
        base = variant(tiny_recipe, workers=ranks, micro=2, normalize="token", stage=stage)
        return {
            name: prepared_job(
                base | {"student": base["student"] | shape | student}, tmp_path / f"{name}-{ranks}"
            ).to_config()
            for name, shape in shapes.items()
        }

    folder = str(tmp_path / "checkpoints")
    run_on_ranks(saved_after_two, 2, configs(2), folder)
    expected = run_on_ranks(resumed, 2, configs(2), folder)[0]
    alike = run_on_ranks(resumed, 2, configs(2, model=other), folder)[0]
    found = run_on_ranks(resumed, after, configs(after, model=other), folder)[0]
    for name, wanted in expected.items():
        assert wanted["mark"] == alike[name]["mark"] == found[name]["mark"] == [7.0, 3.0]
        assert alike[name]["loss"] == wanted["loss"]
        assert found[name]["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        frozen = [key for key in wanted["weights"] if "embed_tokens" in key or "layers.0.mlp.up_proj.w" in key]
        frozen += [key for key in wanted["weights"] if "layers.0.self_attn.q_proj" in key and "lora" not in key]
        assert len(frozen) >= 2
        for key, weight in wanted["weights"].items():
            if key in frozen:
                assert torch.equal(found[name]["weights"][key], weight), (name, key)
            torch.testing.assert_close(found[name]["weights"][key], weight, rtol=0, atol=2e-3)
    shapes = {"frozen": {"freeze": [*FROZEN, "model.norm.weight"]}}
    if after == 1 and stage == "zero3":
        (said,) = run_on_ranks(refusals, after, configs(after), folder)
        assert said[0].endswith(
            "what does not learn in this checkpoint is not what does not learn here: lm.model.norm.weight; restore the "
            "student's files, or set another run.name"
        )


@pytest.mark.slow
def test_second_copies_of_what_does_not_learn_are_the_checkpoints(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """hpZ gathers from them; DeepSpeed loads the first ones alone."""
    tiny_recipe["training"]["batch_size"] = BATCH
    config = read_config(None, "student", on_gpu=False)
    config["zero_optimization"] |= {"zero_hpz_partition_size": 2, "stage3_param_persistence_threshold": 0}
    (tmp_path / "hpz.json").write_text(json.dumps(config))
    base = variant(tiny_recipe, workers=2, micro=2, normalize="token", stage="zero3")
    base["student"] |= {"deepspeed": str(tmp_path / "hpz.json"), "lora": {"rank": 4, "dropout": 0.0}}
    other = changed(Path(tiny_recipe["student"]["model"]), tmp_path / "other")
    jobs = [base, base | {"student": base["student"] | {"model": other}}]
    own, changed_since = ({"lora": prepared_job(job, tmp_path / "data").to_config()} for job in jobs)
    run_on_ranks(saved_after_two, 2, own, str(tmp_path))
    expected, found = (run_on_ranks(resumed, 2, configs, str(tmp_path))[0]["lora"] for configs in (own, changed_since))
    assert found["loss"] == expected["loss"]
