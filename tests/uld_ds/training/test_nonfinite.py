"""What is not finite: agreed on by all ranks before the update, traced to its examples, and without a trace itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.broken_models import break_token, rare_token
from tests.helpers.engines import build, prepared_job, variant, window_of
from tests.helpers.micro_batches import micro_batch
from tests.helpers.ranks import run_on_ranks
from uld_ds.runs.job import Job
from uld_ds.training.loss_spikes import SpikeDetector
from uld_ds.training.nonfinite import Watch


def make_steep(model: str, target: Path) -> None:
    """A copy of a model with the same logits, whose gradient is a thousand times larger before its head."""
    lm = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(1e3)
        lm.model.norm.weight.mul_(1e-3)
    lm.save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)


def shards(student: Any) -> list[Tensor]:
    """This rank's weights and optimizer state."""
    weights = [getattr(p, "ds_tensor", p).detach().clone().flatten() for p in student.module.parameters()]
    optimizer = getattr(student.optimizer, "optimizer", student.optimizer)
    moments = [v.clone() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return [*weights, *moments]


def steps(config: dict[str, Any], batches: list[list[int]]) -> list[dict[str, Any]]:
    """What each step said, and this rank's state after it."""
    job = Job.from_config(config)
    engine, batcher = build(job)
    found = []
    for indices in batches:
        result = engine.train_step(window_of(job, batcher, np.asarray(indices), engine.ranks))
        facts = {name: getattr(result, name) for name in ("loss", "skipped", "suspects", "reason", "learning_rate")}
        found.append({**facts, "state": shards(engine.student)})
    return found


def several(runs: dict[str, tuple[dict[str, Any], list[list[int]]]]) -> dict[str, list[dict[str, Any]]]:
    """Several runs in one process: most of a process's life is importing."""
    return {name: steps(*run) for name, run in runs.items()}


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if a.dim() else torch.equal(a, b)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize(
    "kinds", [("zero3", "teacher", "huge"), pytest.param(("zero2", "stage 0", "exact"), marks=pytest.mark.slow)]
)
def test_a_non_finite_step_leaves_no_trace_on_any_rank(
    tiny_recipe: dict[str, Any], tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    """Loss, gradient, teacher: one rank has it, both skip, and the next step is that of a run that never met it."""
    plain = tmp_path / "stage0.json"
    plain.write_text(json.dumps({"zero_optimization": {"stage": 0}, "steps_per_print": 10**9}))
    base = variant(tiny_recipe, workers=2, micro=2, normalize="token", stage="zero3")
    base |= {"objective": {"uld": 1.5}}
    healthy = prepared_job(base, tmp_path / "healthy")
    token, bad = rare_token(healthy, "student")
    break_token(healthy.student, token, tmp_path / "student")
    teacher_token, bad_teacher = rare_token(healthy, "teacher")
    break_token(healthy.teachers["teacher"], teacher_token, tmp_path / "teacher")
    make_steep(healthy.student, tmp_path / "steep")
    others = [i for i in range(40) if i not in (bad, bad_teacher)]
    good, better = others[:8], others[8:16]
    broken, misread = [*others[16:23], bad], [*others[16:23], bad_teacher]

    def job(**changes: Any) -> dict[str, Any]:
        return healthy.to_config() | changes

    def staged(stage: str | Path) -> dict[str, Any]:
        recipe = base | {"student": base["student"] | {"deepspeed": str(stage)}}
        return prepared_job(recipe, tmp_path / Path(stage).stem).to_config() | {"student": str(tmp_path / "student")}

    # Most of these kinds of engine differ in what skips the step: DeepSpeed's own check, or ours.
    huge = prepared_job(base | {"objective": {"ce": 2e37}}, tmp_path / "huge").to_config()
    exact = prepared_job(base | {"objective": {"method": "exact"}}, tmp_path / "exact").to_config()
    runs = {
        "zero3": (job(student=str(tmp_path / "student")), [good, broken, better]),
        "zero3, never": (job(student=str(tmp_path / "student")), [good, better]),
        "zero2": (staged("student_zero2_cpu.json"), [good, broken, better]),
        "zero2, never": (staged("student_zero2_cpu.json"), [good, better]),
        "stage 0": (staged(plain), [good, broken, better]),
        "stage 0, never": (staged(plain), [good, better]),
        "exact": (exact | {"student": str(tmp_path / "student")}, [good, broken, better]),
        "exact, never": (exact | {"student": str(tmp_path / "student")}, [good, better]),
        "teacher": (job(teachers={"teacher": str(tmp_path / "teacher")}), [good, misread, better]),
        "teacher, never": (job(teachers={"teacher": str(tmp_path / "teacher")}), [good, better]),
        "huge": (huge | {"student": str(tmp_path / "steep")}, [good]),
    }
    runs = {name: run for name, run in runs.items() if name.removesuffix(", never") in kinds}
    ranks = run_on_ranks(several, 2, runs)
    for name in set(kinds) - {"huge"}:
        culprit = bad_teacher if name == "teacher" else bad
        for rank in ranks:
            first, second, third = rank[name]
            assert [step["skipped"] for step in rank[name]] == [False, True, False], name
            assert second["suspects"] == (culprit,), name
            assert same(first["state"], second["state"]), name
            never = rank[f"{name}, never"]
            assert third["loss"] == never[1]["loss"], name
            assert third["learning_rate"] == never[1]["learning_rate"], name
            assert same(third["state"], never[1]["state"]), name
            assert not same(first["state"], third["state"]), name
    if "huge" not in kinds:
        return
    assert ranks[0]["zero3"][1]["reason"] == "the loss is nan"
    assert ranks[0]["teacher"][1]["reason"] == "the teacher's logits are not finite"
    # The loss is finite, the gradient overflows on its way through the model.
    (step,) = ranks[1]["huge"]
    assert np.isfinite(step["loss"])
    assert step["skipped"]
    assert set(step["suspects"]) <= set(good)
    assert step["suspects"]
    assert step["reason"] == "the gradient is not finite"


def test_a_gradient_is_traced_to_its_row() -> None:
    """The square root has a finite value at 0 and an infinite slope."""
    batch = micro_batch([(1, 2, 1), (1, 1, 1), (0, 1, 1)])
    batch.examples.extend([7, 9, 8])
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0], [5.0, 6.0]], requires_grad=True)
    watch = Watch()
    watch.begin(batch, hidden)
    nats = hidden.sqrt().sum(1)
    watch.end(nats.sum(), nats)
    nats.sum().backward()
    assert watch.bad_loss() == 0
    assert watch.suspects(by_loss=True) == []
    assert watch.suspects(by_loss=False) == [9]
    assert watch.examples() == [7, 9]


def test_losses_that_stand_out_are_spikes() -> None:
    recent: list[float] = []
    detector = SpikeDetector(8.0, recent)
    rng = np.random.default_rng(0)
    # A run that learns: noise and a falling mean, none of it unusual.
    for step in range(300):
        assert detector.add(3 / (1 + step / 100) + 0.1 * rng.normal()) is None
    assert len(recent) == SpikeDetector.WINDOW
    median = float(np.median(recent))
    found = detector.add(median + 3)
    assert found is not None
    assert found > 8
    # Restored from a checkpoint it goes on alike; with 0 it says nothing.
    assert SpikeDetector(8.0, list(recent)).add(median + 2) == detector.add(median + 2)
    assert SpikeDetector(0.0, list(recent)).add(1e9) is None
    # Early losses are no measure, and a constant one is no reason for alarm.
    assert SpikeDetector(8.0, [1.0] * 15).add(1e9) is None
    assert SpikeDetector(8.0, [1.0] * 16).add(1.05) is None
    assert SpikeDetector(8.0, [1.0] * 16).add(1.1) == pytest.approx(10)
