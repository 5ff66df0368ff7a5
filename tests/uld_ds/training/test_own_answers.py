"""Steps with own answers of the student: whatever the ranks, and what both models give to them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.helpers.engines import build, prepared_job, variant, window_of
from tests.helpers.ranks import run_on_ranks
from uld_ds.batches import MicroBatch
from uld_ds.data.statistics import facts_of_prompts
from uld_ds.recipe.rollouts import RolloutSettings
from uld_ds.rollouts.prompts import PROMPT_FEATURES
from uld_ds.runs.job import Job
from uld_ds.training.own_answers import Judged

# Uneven answers, one example missing; those from 20 on are taken for the student's own.
INDICES = [3, 11, 0, 25, 40, 7, 19, -1]
OWN = [25, 40]
WEIGHTS = {"uld": 0.7, "projection": 0.4, "likelihood": 1.1}


def marked(micro_batch: MicroBatch, own: list[int]) -> MicroBatch:
    """The same micro-batch, some of whose examples are own answers."""
    return replace(micro_batch, own=torch.tensor([example in own for example in micro_batch.examples]))


def with_a_prompt(job: Job) -> Job:
    """The job with prompts for rollouts, of which none is sampled here."""
    folder = job.run_dir / "prompts"
    row = {"conversation": "[[], null, null, null]", "prompt_ids": [1], "prompt": "", "notes": [], "digest": ""}
    rows = Dataset.from_list([row], features=PROMPT_FEATURES)
    rows.save_to_disk(folder / "rows")
    (folder / "facts.json").write_text(json.dumps(asdict(facts_of_prompts(rows, 0))))
    return replace(job, splits={**job.splits, "prompts": str(folder)})


def step_of(config: dict[str, Any], own: list[int] | None) -> dict[str, Any]:
    """One step, and the weights after it; without ``own`` as before there were rollouts."""
    job = Job.from_config(config)
    if own is not None:
        rollouts = RolloutSettings(objective=WEIGHTS)
        job = replace(job, recipe=job.recipe.model_copy(update={"rollouts": rollouts}))
    engine, batcher = build(job)
    window = window_of(job, batcher, np.asarray(INDICES), engine.ranks)
    if own is not None:
        window = [marked(micro_batch, own) for micro_batch in window]
    result = engine.train_step(window)
    weights = [getattr(p, "ds_tensor", p).detach().clone().flatten() for p in engine.student.module.parameters()]
    judged = result.judged
    return {
        "loss": result.loss,
        "bits": result.bits_per_byte,
        "sums": result.rollouts,
        "metrics": result.metrics(),
        "judged": None if judged is None else dict(zip(judged.examples, judged.teacher_nats.tolist(), strict=True)),
        "weights": weights,
        "norm": result.gradient_norm,
    }


def several(cases: dict[str, tuple[dict[str, Any], list[int] | None]]) -> dict[str, dict[str, Any]]:
    """Several cases in one process: most of a process's life is importing."""
    return {name: step_of(*case) for name, case in cases.items()}


def plain_nats(job: Job, side: str, example: int) -> float:
    """Nats of the tokens in an example's segments by an unsharded model in float64."""
    place = job.student if side == "student" else job.teachers["teacher"]
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64)
    row = job.split("train").rows.with_format("torch")[example]
    ids, answers = row[f"{side}_ids"].long(), row[f"{side}_answers"].long()
    with torch.no_grad():
        log_p = model(ids[None]).logits[0].log_softmax(-1)[answers - 1]
    right = log_p.gather(1, ids[answers, None]).squeeze(1)
    bounds = zip(row[f"{side}_segments"].tolist(), row[f"{side}_segment_stops"].tolist(), strict=True)
    return -sum(float(right[start:stop].sum()) for start, stop in bounds)


def test_own_answers_do_not_depend_on_ranks_or_accumulation(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    shapes = {
        "1 x 1": {"workers": 1, "micro": 8, "stage": "zero2"},
        "1 x 4": {"workers": 1, "micro": 2, "stage": "zero2"},
        "2 x 2": {"workers": 2, "micro": 2, "stage": "zero2"},
    }
    jobs = {
        name: with_a_prompt(prepared_job(variant(tiny_recipe, normalize="token", **shape), tmp_path / name))
        for name, shape in shapes.items()
    }
    alone: dict[str, tuple[dict[str, Any], list[int] | None]] = {
        name: (jobs[name].to_config(), OWN) for name in ("1 x 1", "1 x 4")
    }
    alone["without"] = (jobs["1 x 4"].to_config(), None)
    alone["given alone"] = (jobs["1 x 4"].to_config(), [])
    alone["own alone"] = (jobs["1 x 4"].to_config(), [index for index in INDICES if index >= 0])
    (one,) = run_on_ranks(several, 1, alone)
    first, second = run_on_ranks(several, 2, {"2 x 2": (jobs["2 x 2"].to_config(), OWN)})

    # The same step, however its examples are spread out.
    reference = one["1 x 1"]
    for other in (one["1 x 4"], first["2 x 2"], second["2 x 2"]):
        for fact in ("loss", "norm", "bits"):
            assert other[fact] == pytest.approx(reference[fact], rel=1e-6), fact
        for sums in ("teacher_nats", "student_nats"):
            assert getattr(other["sums"], sums) == pytest.approx(getattr(reference["sums"], sums), rel=1e-6)
        assert other["sums"].bytes == reference["sums"].bytes

    # What both models give to own answers, and the student to given ones.
    job, whole = jobs["1 x 1"], reference["sums"]
    of_teacher = {example: plain_nats(job, "teacher", example) for example in OWN}
    assert reference["judged"] == pytest.approx(of_teacher, rel=1e-5)
    assert sorted([*first["2 x 2"]["judged"], *second["2 x 2"]["judged"]]) == OWN
    assert whole.teacher_nats == pytest.approx(sum(of_teacher.values()), rel=1e-5)
    assert whole.student_nats == pytest.approx(sum(plain_nats(job, "student", example) for example in OWN), rel=1e-5)
    bytes_of = job.split("train").rows["answer_bytes"][:]
    assert whole.bytes == sum(bytes_of[example] for example in OWN)
    for side in ("teacher", "student"):
        metric = reference["metrics"][f"rollouts/step_{side}_nats_per_byte"]
        assert metric == getattr(whole, f"{side}_nats") / whole.bytes
    every = one["without"]["bits"] * sum(bytes_of[index] for index in INDICES if index >= 0)
    given = reference["bits"] * sum(bytes_of[index] for index in INDICES if index >= 0 and index not in OWN)
    assert 0 < given < every

    # Without own answers nothing is told of them, and nothing else is learned.
    without, given_alone, own_alone = one["without"], one["given alone"], one["own alone"]
    assert (without["sums"], without["judged"]) == (None, None)
    assert (given_alone["sums"], given_alone["judged"]) == (None, {})
    assert given_alone["metrics"] == without["metrics"]
    assert all(torch.equal(a, b) for a, b in zip(without["weights"], given_alone["weights"], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(without["weights"], one["1 x 4"]["weights"], strict=True))
    assert own_alone["bits"] is None
    assert "train/bits_per_byte" not in own_alone["metrics"]
    assert len(own_alone["judged"]) == 7


def test_nothing_judged_is_an_empty_tensor() -> None:
    assert Judged().teacher_nats.shape == (0,)
