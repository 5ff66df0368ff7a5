"""Where the teacher's words come from, on real DeepSpeed engines over gloo: the engine cannot tell the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests.helpers.engines import CPU, build, prepared_job, teacher_of, teacher_side, variant, window_of
from tests.helpers.ranks import run_on_ranks
from tests.helpers.tiny import save_tiny_model
from uld_ds.data.sampling import step_examples
from uld_ds.runs.job import Job
from uld_ds.teachers.cache import OutputCache
from uld_ds.teachers.cached import CachedTeacher
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.training.teaching import Teachings
from uld_ds.utils.distributed import Ranks

EXAMPLES = list(range(8))


def job_in(folder: Path, recipe: dict[str, Any], **teacher: Any) -> dict[str, Any]:
    return prepared_job(recipe | {"teacher": recipe["teacher"] | teacher}, folder).to_config()


# ---- online


def answers_of(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What teachers say about the same examples, and what it cost."""
    said = []
    for config in configs:
        job = Job.from_config(config)
        ranks = Ranks.current()
        teacher = OnlineTeacher(teacher_of(job), teacher_side(job), ranks=ranks, device=CPU)
        # The second rank has less to ask, or nothing at all.
        mine = EXAMPLES if ranks.is_first else EXAMPLES[:1]
        tokens = teacher.answers(mine, 0)
        said.append(
            {
                "log_probs": [item.log_probs for item in tokens],
                "heads": [item.spectrum.head for item in tokens],
                "bytes": teacher.bytes_gathered,
                "tokens": teacher.tokens_run,
            }
        )
    return said


def test_sharded_teachers_say_what_whole_ones_say(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    configs = [
        job_in(tmp_path / "a", tiny_recipe),
        job_in(tmp_path / "b", tiny_recipe, sharding="none"),
        job_in(tmp_path / "c", tiny_recipe, max_tokens_per_forward=1),
    ]
    (sharded, whole, one_by_one), others = run_on_ranks(answers_of, 2, configs)
    for other in (whole, one_by_one):
        for key in ("log_probs", "heads"):
            for mine, theirs in zip(sharded[key], other[key], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert [len(item) for item in others[0]["log_probs"]] == [len(sharded["log_probs"][0])]
    # One gather of all weights per forward: eight forwards cost eight times what all examples at once cost.
    assert whole["bytes"] == 0
    assert one_by_one["bytes"] > 3 * sharded["bytes"] > 0


def traffic_of_steps(configs: list[dict[str, Any]]) -> list[int]:
    """Bytes of teacher weights per optimizer step, the second of two (the first one traces modules)."""
    gathered = []
    for config in configs:
        job = Job.from_config(config)
        engine, batcher = build(job)
        for step in range(2):
            result = engine.train_step(window_of(job, batcher, np.arange(16) + 16 * step, engine.ranks))
        gathered.append(result.teacher_bytes)
    return gathered


def test_traffic_does_not_grow_with_accumulation(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = tiny_recipe | {"training": tiny_recipe["training"] | {"batch_size": 16}}
    recipe["teacher"] |= {"max_tokens_per_forward": 4096}
    configs = [
        prepared_job(variant(recipe, workers=2, micro=micro, normalize="token", stage="zero3"), tmp_path / str(micro))
        for micro in (8, 1)
    ]
    assert [config.recipe.accumulation for config in configs] == [1, 8]
    once, eight_times = run_on_ranks(traffic_of_steps, 2, [config.to_config() for config in configs])[0]
    assert once > 0
    assert abs(eight_times - once) <= 0.05 * once


def memory_of_a_teacher(config: dict[str, Any], sharding: str) -> tuple[float, float]:
    """Megabytes that a teacher took, and that were there again once it was closed."""
    job = Job.from_config(config)
    process = psutil.Process()
    before = process.memory_info().rss
    teacher = OnlineTeacher(teacher_of(job), teacher_side(job), ranks=Ranks.current(), device=CPU)
    loaded = process.memory_info().rss
    teacher.close()
    return (loaded - before) / 1e6, (loaded - process.memory_info().rss) / 1e6


@pytest.mark.parametrize("sharding", ["zero3", "none"])
def test_a_closed_teacher_takes_no_memory(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]], sharding: str
) -> None:
    size = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 8, "num_attention_heads": 8}
    large = save_tiny_model(tmp_path / "large", rows, kind="bpe", vocab_size=600, seed=1, **size)
    recipe = variant(tiny_recipe, workers=1, micro=2, normalize="token", stage="zero3")
    config = job_in(tmp_path, recipe, model=str(large), sharding=sharding)
    ((taken, freed),) = run_on_ranks(memory_of_a_teacher, 1, config, sharding)
    weights = 4 * 8 * (3 * 512 * 8192 + 2 * 512 * 512) / 1e6
    assert taken > weights
    assert freed > 0.95 * weights


# ---- remembering


def cached_run(config: dict[str, Any], folder: str, steps: int) -> dict[str, Any]:
    """Losses of some steps; then the same again by a teacher that only remembers."""
    job = Job.from_config(config)
    engine, batcher = build(job)
    online: Any = engine.teachings.teachers[0].source
    memory = OutputCache(folder, "x", rank=engine.ranks.rank)
    number = len(batcher)
    arguments: dict[str, Any] = {"num_examples": number, "ranks": engine.ranks, "device": CPU}
    teacher = CachedTeacher(memory, online, **arguments)
    engine.teachings = Teachings.of_one(teacher, engine.teachings.teachers[0].objective)
    weights = [*online._engine.module.parameters()]
    results = []
    for step in range(steps):
        window = window_of(job, batcher, step_examples(step, number, 16, seed=0), engine.ranks)
        results.append(engine.train_step(window))
    again = CachedTeacher(OutputCache(folder, "x", rank=engine.ranks.rank), None, **arguments)
    asked = list(range(number))
    both = [source.answers(asked, steps) for source in (teacher, again)]
    return {
        "losses": [result.loss for result in results],
        "tokens": [result.teacher_tokens for result in results],
        "bytes": [result.teacher_bytes for result in results],
        "loaded": teacher.is_loaded,
        "bytes held": sum(held.untyped_storage().nbytes() for p in weights for held in (p, p.ds_tensor)),
        "same": all(
            torch.equal(ours.log_probs, theirs.log_probs) and torch.equal(ours.spectrum.head, theirs.spectrum.head)
            for ours, theirs in zip(*both, strict=True)
        ),
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_example_is_asked_about_once(tiny_recipe: dict[str, Any], tmp_path: Path, ranks: int) -> None:
    training = {"training": tiny_recipe["training"] | {"batch_size": 16}}
    recipe = variant(tiny_recipe | training, workers=ranks, micro=2, normalize="token", stage="zero3")
    config = prepared_job(recipe, tmp_path / "job").to_config()
    found = run_on_ranks(cached_run, ranks, config, str(tmp_path / "memory"), 5)
    for of_rank in found:
        # 48 examples, 16 a step: three steps ask, the others read; and nobody holds the model any more.
        assert all(of_rank["tokens"][:3]) and of_rank["tokens"][3:] == [0, 0]
        assert of_rank["bytes"][3:] == [0, 0]
        assert all(of_rank["bytes"][:3]) == (ranks > 1)
        assert not of_rank["loaded"] and of_rank["bytes held"] == 0
        assert of_rank["same"]
    # A run that is cut short and goes on reads what was said before, to the bit.
    again = run_on_ranks(cached_run, ranks, config, str(tmp_path / "memory"), 5)
    assert again[0]["tokens"] == [0] * 5
    assert again[0]["losses"] == found[0]["losses"]
