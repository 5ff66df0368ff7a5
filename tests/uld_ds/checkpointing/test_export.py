"""Weights that are written while the student learns are those it has, and it goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.engines import build, prepared_job, window_of
from tests.helpers.ranks import run_on_ranks
from tests.helpers.tiny import save_tiny_model
from uld_ds.checkpointing.export import write_weights
from uld_ds.models.row_model import Head
from uld_ds.runs.job import Job


def written_between_steps(job: Job, target: str) -> dict[str, Any]:
    engine, batcher = build(job)
    options = engine.student.module.lm.generation_config
    results = [engine.train_step(window_of(job, batcher, np.arange(8), engine.ranks))]
    write_weights(engine.student, Path(target) / "weights", engine.ranks)
    side = batcher.window([np.arange(4)])[0].student

    def keep(hidden: torch.Tensor, head: Head) -> torch.Tensor:
        return head.logits(hidden).clone()

    engine.student.eval()
    with torch.no_grad():
        logits = engine.student(side, side.answer_rows, keep)
    engine.student.train()
    assert engine.student.module.lm.generation_config is options
    results.append(engine.train_step(window_of(job, batcher, np.arange(8, 16), engine.ranks)))
    return {"logits": logits, "side": side, "losses": [result.loss for result in results]}


def steps_alone(job: Job) -> list[float]:
    engine, batcher = build(job)
    windows = [np.arange(8), np.arange(8, 16)]
    return [engine.train_step(window_of(job, batcher, window, engine.ranks)).loss for window in windows]


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_a_learning_student(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]], tied: bool
) -> None:
    student = save_tiny_model(tmp_path / "s", rows, kind="unigram", vocab_size=400, seed=3, tied=tied)
    # Padded, as transformers is asked here: bit for bit.
    changed = tiny_recipe["student"] | {"model": str(student), "packing": False}
    job = prepared_job(tiny_recipe | {"student": changed}, tmp_path)
    found, _ = run_on_ranks(written_between_steps, 2, job, str(tmp_path))
    names = {item.name for item in (tmp_path / "weights").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    side, model = found["side"], AutoModelForCausalLM.from_pretrained(tmp_path / "weights")
    with torch.no_grad():
        logits = model(side.input_ids, attention_mask=side.attention_mask).logits.flatten(0, 1)[side.answer_rows]
    assert torch.equal(logits, found["logits"])
    assert found["losses"] == run_on_ranks(steps_alone, 2, job)[0]
