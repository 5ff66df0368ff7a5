"""The custom step, on real DeepSpeed engines over gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.engines import build, prepared_job, teacher_side, variant, window_of
from tests.helpers.ranks import run_on_ranks
from tests.helpers.tiny import save_tiny_model
from uld_ds.checkpointing.export import export_student
from uld_ds.models.row_model import Head
from uld_ds.runs.job import Job
from uld_ds.training.assembly import assemble
from uld_ds.utils.distributed import Ranks


def gradient_of_one_step(config: dict[str, Any], indices: list[int]) -> dict[str, Any]:
    """Gradients of all parameters right before the update, and the step's own account of itself."""
    job = Job.from_config(config)
    engine, batcher = build(job)
    ranks = engine.ranks
    gradients: dict[str, torch.Tensor] = {}
    update = engine.student.step

    def step_and_look() -> None:
        if engine.student.is_gradient_accumulation_boundary():
            for name, parameter in engine.student.module.named_parameters():
                gradients[name] = safe_get_full_grad(parameter).clone()
        update()

    engine.student.step = step_and_look
    window = window_of(job, batcher, np.asarray(indices), ranks)
    result = engine.train_step(window)
    masks = [micro_batch.student.attention_mask for micro_batch in window]
    of_rank = {
        "gradients": gradients,
        "turns": len(window),
        "padding": result.student_padding,
        "mine": 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks),
    }
    return of_rank | {"loss": result.loss, "ce": result.ce, "uld": result.uld} | result.options


def gradients_of_steps(configs: dict[str, dict[str, Any]], indices: list[int]) -> dict[str, dict[str, Any]]:
    """Several configurations in one process: most of a process's life is importing."""
    return {name: gradient_of_one_step(config, indices) for name, config in configs.items()}


def test_gradient_does_not_depend_on_ranks_or_accumulation(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Nor on whether examples are laid end to end or padded, nor on how many tokens a micro-batch may hold."""
    # Uneven answers, one example missing: eight examples as 1 x 4 x 2, 2 x 2 x 2 and 1 x 1 x 8, and by tokens.
    indices = [3, 11, 0, 25, 40, 7, 19, -1]
    shapes = {
        "1 rank x 1": {"workers": 1, "micro": 8, "stage": "zero2"},
        "1 rank x 4": {"workers": 1, "micro": 2, "stage": "zero3"},
        "2 ranks x 2": {"workers": 2, "micro": 2, "stage": "zero3"},
        "1 rank x 1, padded": {"workers": 1, "micro": 8, "stage": "zero2", "packing": False},
        "1 rank x 4, padded": {"workers": 1, "micro": 2, "stage": "zero3", "packing": False},
        "1 rank, 260 tokens": {"workers": 1, "micro": 8, "stage": "zero2", "tokens": 260},
        "2 ranks, 250 tokens": {"workers": 2, "micro": 8, "stage": "zero3", "tokens": 250},
    }
    outcomes: dict[str, dict[str, Any]] = {}
    for ranks in (1, 2):
        configs = {
            f"{name}, {normalize}": prepared_job(
                variant(tiny_recipe, normalize=normalize, **shape), tmp_path / f"{name} {normalize}"
            ).to_config()
            for normalize in ("token", "sample")
            for name, shape in shapes.items()
            if shape["workers"] == ranks
        }
        outcomes |= run_on_ranks(gradients_of_steps, ranks, configs, indices)[0]
    assert len(outcomes) == 14
    for name, outcome in outcomes.items():
        reference = outcomes["1 rank x 1, " + name.rpartition(", ")[2]]
        for key in ("loss", "ce", "uld", "likelihood", "classical", "hybrid", "projection", "completion"):
            assert outcome[key] == pytest.approx(reference[key], rel=1e-6), (name, key)
        for parameter, gradient in outcome["gradients"].items():
            expected = reference["gradients"][parameter]
            error = (gradient - expected).norm() / expected.norm()
            assert error < 2e-6, (name, parameter, float(error))
    assert outcomes["1 rank x 1, token"]["padding"] == outcomes["2 ranks, 250 tokens, token"]["padding"] == 0
    assert [outcomes[f"{name}, token"]["turns"] for name in shapes] == [1, 4, 2, 1, 4, 3, 2]
    together, apart = (outcomes[f"1 rank x {turns}, padded, token"] for turns in (1, 4))
    assert (together["padding"], apart["padding"]) == pytest.approx((together["mine"], apart["mine"]))
    assert 0 < apart["padding"] < together["padding"], "examples of a length share a micro-batch"
    difference = outcomes["1 rank x 1, token"]["ce"] - outcomes["1 rank x 1, sample"]["ce"]
    assert abs(difference) > 1e-4, "uneven answers must tell the two normalizations apart"


def positions_of_budgets(config: dict[str, Any]) -> list[tuple[int, int]]:
    """Examples and padded positions of each micro-batch of a run's first step."""
    parts = assemble(Job.from_config(config), ranks=Ranks.current(), device=torch.device("cpu"))
    window = parts.batches.window(0)
    return [(len(micro_batch.examples), micro_batch.student.input_ids.numel()) for micro_batch in window]


def test_a_budget_of_tokens_counts_padding_of_a_student_that_pads(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Whether it pads is known once it is loaded; a budget that forgot it would not bound memory."""
    found = {}
    for packing in (True, False):
        recipe = variant(tiny_recipe, workers=1, micro=8, normalize="token", stage="zero2", tokens=260, packing=packing)
        config = prepared_job(recipe, tmp_path / str(packing)).to_config()
        found[packing] = run_on_ranks(positions_of_budgets, 1, config)[0]
    assert all(number == 1 or positions <= 260 for number, positions in found[False])
    assert any(positions > 260 for _, positions in found[True]), "padding would not have counted"


def norms_of_steps(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Norms of the gradient in two steps, and the first one of the gradients that the engine held."""
    found = {}
    for name, config in configs.items():
        first = gradient_of_one_step(config, list(range(8)))
        job = Job.from_config(config)
        engine, batcher = build(job)
        every = (np.arange(8 * step, 8 * step + 8) for step in range(2))
        results = [engine.train_step(window_of(job, batcher, indices, engine.ranks)) for indices in every]
        held = torch.stack([gradient.double().norm() for gradient in first["gradients"].values()]).norm()
        norms = [result.metrics()["train/gradient_norm"] for result in results]
        found[name] = {"norms": norms, "held": float(held), "losses": [result.loss for result in results]}
    return found


def test_the_norm_of_the_gradient_is_the_same_at_every_stage(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Before clipping, which has much to do here; and the first update, which the second norm follows from, too."""
    configs = {}
    for stage, precision in [(0, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16")]:
        file = tmp_path / f"student_stage{stage}_cpu.json"
        file.write_text(json.dumps({"zero_optimization": {"stage": stage}, "steps_per_print": 10**9}))
        recipe = variant(tiny_recipe, workers=2, micro=2, normalize="token", stage="zero2")
        recipe["student"] |= {"deepspeed": str(file), "precision": precision}
        configs[f"{precision} {stage}"] = prepared_job(recipe, tmp_path / f"{precision} {stage}").to_config()
    first, second = run_on_ranks(norms_of_steps, 2, configs)
    assert [of["norms"] for of in first.values()] == [of["norms"] for of in second.values()]
    for stage in (2, 3):
        found = first[f"fp32 {stage}"]
        assert first["fp32 0"]["norms"][0] == pytest.approx(found["norms"][0], rel=1e-6)
        assert found["norms"][0] == pytest.approx(found["held"], rel=1e-6)
        # Adam's first update is made of signs, which rounding turns where a gradient is all but zero.
        assert first["fp32 0"]["norms"][1] == pytest.approx(found["norms"][1], rel=3e-4)
    assert first["fp32 0"]["norms"][0] > 3, "nothing is clipped"
    assert first["bf16 0"]["norms"][0] == pytest.approx(first["fp32 0"]["norms"][0], rel=0.05)
    for part in ("norms", "losses"):
        assert first["bf16 0"][part] == pytest.approx(first["bf16 1"][part], rel=1e-4), part


def plain_step(config: dict[str, Any], indices: list[int]) -> dict[str, float]:
    """Loss parts of a step next to those of unsharded models and plain formulas in float64."""
    job = Job.from_config(config)
    engine, batcher = build(job)
    window = window_of(job, batcher, np.asarray(indices), engine.ranks)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64) for p in (job.student, job.teachers["teacher"])
    )
    result = engine.train_step(window)
    rows = job.split("train").rows.with_format("torch").select(indices)
    chain = job.recipe.objective.merge == "chain"
    nats, distances = [], []
    with torch.no_grad():
        for row in rows:
            spectra = []
            for side, model in (("student", student), ("teacher", teacher)):
                ids, answers = row[f"{side}_ids"], row[f"{side}_answers"].long()
                # Position i-1 predicts token i.
                log_p = model(ids[None]).logits[0].log_softmax(-1)[answers - 1]
                right = log_p.gather(1, ids[answers, None].long()).squeeze(1)
                if side == "student":
                    nats += (-right).tolist()
                starts, stops = row[f"{side}_segments"].tolist(), row[f"{side}_segment_stops"].tolist()
                if chain:
                    scales = [right[start : stop - 1].sum() for start, stop in zip(starts, stops, strict=True)]
                    spectrum = torch.stack([log_p[n - 1] + scale for n, scale in zip(stops, scales, strict=True)])
                else:
                    spectrum = log_p[starts]
                spectra.append(spectrum.exp().sort(descending=True).values)
            for p, q in zip(*spectra, strict=True):
                width = max(len(p), len(q))
                distances.append((F.pad(p, (0, width - len(p))) - F.pad(q, (0, width - len(q)))).abs().sum())
    return {
        "ce": result.ce,
        "uld": result.uld,
        "plain_ce": float(np.mean(nats)),
        "plain_uld": float(torch.stack(distances).mean()),
    }


@pytest.mark.parametrize("merge", ["first", "chain"])
def test_step_equals_plain_formulas_on_unsharded_models(
    tiny_recipe: dict[str, Any], tmp_path: Path, merge: str
) -> None:
    recipe = variant(tiny_recipe, workers=1, micro=2, normalize="token", stage="zero3")
    recipe["objective"] |= {
        "merge": merge,
        "classical": 0.0,
        "hybrid": 0.0,
        "projection": 0.0,
        "completion": 0.0,
    }
    job = prepared_job(recipe, tmp_path)
    (found,) = run_on_ranks(plain_step, 1, job.to_config(), [0, 1, 2, 3, 4, 5, 6, 7])
    assert found["ce"] == pytest.approx(found["plain_ce"], rel=1e-5)
    assert found["uld"] == pytest.approx(found["plain_uld"], rel=1e-3)


def sharded_logits_and_export(config: dict[str, Any], target: str) -> dict[str, Any]:
    """The trained student's and the teacher's own logits under ZeRO-3, and the student exported."""
    job = Job.from_config(config)
    engine, batcher = build(job)
    engine.train_step(window_of(job, batcher, np.arange(8), engine.ranks))
    side = batcher.window([np.arange(4)])[0].student
    of_teacher = teacher_side(job).batch(range(4))

    def keep(hidden: torch.Tensor, head: Head) -> torch.Tensor:
        return head.logits(hidden).clone()

    engine.student.eval()
    with torch.no_grad():
        student_logits = engine.student(side, side.answer_rows, keep)
        teacher_engine = engine.teachings.teachers[0].source._engine  # type: ignore[attr-defined]
        teacher_logits = teacher_engine(of_teacher, of_teacher.answer_rows, keep)
    export_student(engine.student, AutoTokenizer.from_pretrained(job.student), Path(target), engine.ranks)
    sharded = sum(p.ds_tensor.numel() for p in teacher_engine.module.parameters())
    return {
        "student": student_logits,
        "teacher": teacher_logits,
        "side": side,
        "teacher_side": of_teacher,
        "sharded_share": sharded / sum(p.ds_numel for p in teacher_engine.module.parameters()),
    }


def whole_logits(folder: Path, side: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(side.input_ids, attention_mask=side.attention_mask).logits
    return logits.flatten(0, 1)[side.answer_rows]


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sharded_logits_equal_unsharded_ones_and_export_keeps_them(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]], tied: bool
) -> None:
    student = save_tiny_model(tmp_path / "s", rows, kind="unigram", vocab_size=400, seed=3, tied=tied)
    tiny_recipe["student"] |= {"model": str(student), "deepspeed": "student_zero3_cpu.json"}
    job = prepared_job(tiny_recipe, tmp_path)
    target = tmp_path / "export"
    first, second = run_on_ranks(sharded_logits_and_export, 2, job.to_config(), str(target))
    assert torch.equal(first["student"], second["student"])
    torch.testing.assert_close(first["student"], whole_logits(target, first["side"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        first["teacher"], whole_logits(Path(job.teachers["teacher"]), first["teacher_side"]), rtol=0, atol=1e-5
    )
    assert first["sharded_share"] == pytest.approx(0.5, abs=0.01)
    exported = AutoModelForCausalLM.from_pretrained(target)
    assert exported.config.tie_word_embeddings is tied
    before = AutoModelForCausalLM.from_pretrained(student)
    assert not torch.equal(exported.lm_head.weight, before.lm_head.weight), "the step changed nothing"
