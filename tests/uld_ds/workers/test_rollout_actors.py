"""Rollouts by Ray's actors: the round's weights reach them, and what a lost one was asked is asked again, once."""

from __future__ import annotations

import hashlib
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from tests.helpers.engines import prepared_job
from tests.helpers.ranks import run_on_ranks
from tests.helpers.ray_nodes import Nodes, join_cluster, ray_nodes
from tests.helpers.rollout_sampler import SlowSampler, noted
from tests.helpers.tiny import save_tiny_model
from tests.helpers.vllm_python import vllm_python
from uld_ds.errors import FinalError
from uld_ds.generation.sampling import Asked
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.runs.job import Job
from uld_ds.utils.distributed import Ranks
from uld_ds.workers.actor_group import ActorGroup
from uld_ds.workers.rollout_actors import RolloutActors, _remove_weights, _sampled, draw_seed

PROMPTS = [[5, 9, 31], [7], [3, 8], [12, 4, 90, 33], [60], [7, 7]]
# Two prompts each.
ASKED = [Asked(f"0:{number}", np.array(PROMPTS[number % 6], np.int32)) for number in range(12)]
BATCHES = {number: ASKED[2 * number : 2 * number + 2] for number in range(6)}


def test_draws_depend_on_seed_and_name() -> None:
    first_half = hashlib.sha256(b"3:0:17").hexdigest()[:16]
    assert draw_seed(3, "0:17") == int(first_half, 16) // 2
    seeds = {draw_seed(seed, f"{r}:{n}") for seed in range(3) for r in range(10) for n in range(100)}
    assert len(seeds) == 3000 and max(seeds) < 2**63


def test_log_probs_that_are_not_finite_are_final() -> None:
    with pytest.raises(FinalError, match="not finite"):
        _sampled((np.array([1, 2], np.int32), np.array([-1.0, np.nan], np.float32), False))


def test_what_a_killed_attempt_left_is_removed_and_rounds_stay(tmp_path: Path) -> None:
    for name in ("weights-abc-3", ".aside-0123-weights-abc-4.part", "round-000002", "weightsless"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("x")
    _remove_weights(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["round-000002", "weightsless"]
    _remove_weights(tmp_path / "new")
    assert (tmp_path / "new").is_dir()


# ---- with Ray


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    # Actors import the tests' sampler.
    with ray_nodes(1, cpus=4, environment={"PYTHONPATH": str(Path(__file__).parents[3])}) as found:
        yield found


def actors_of(student: Any, folder: Path, count: int, **options: Any) -> RolloutActors:
    return RolloutActors(
        student,
        seed=3,
        make=partial(SlowSampler, str(folder / "journal"), **options),
        group=ActorGroup("rollouts", "rollouts.actors", count, cpus=0.5, gpus=0.0),
        folder=folder / "rollouts",
        logs=folder / "logs",
        ranks=Ranks.current(),
    )


def plain(sampled: Any) -> Any:
    return [(one.ids.tolist(), one.log_probs.tobytes(), one.ended) for one in sampled]


def two_rounds(nodes: tuple[str, dict[str, str]], job: Job, target: str, count: int) -> dict[str, Any]:
    """Two rounds with a step between them; answers of this rank's batches, and of the same weights in this process."""
    import torch

    from tests.helpers.engines import build, window_of
    from uld_ds.checkpointing.export import write_weights

    join_cluster(nodes)
    folder = Path(target)
    engine, batcher = build(job)
    ranks, actors = engine.ranks, actors_of(engine.student, folder, count)
    mine = {number: batch for number, batch in BATCHES.items() if number % ranks.size == ranks.rank}
    found: dict[str, Any] = {"rounds": [], "expected": [], "there": []}
    for number in range(2):
        actors.take_weights()
        found["there"].append(sorted(item.name for item in (folder / "rollouts").iterdir()))
        found["rounds"].append({batch: plain(answers) for batch, answers in actors.sample(mine)})
        actors.release()
        write_weights(engine.student, folder / f"own-{number}", ranks)
        here = SlowSampler(str(folder / f"own-journal-{ranks.rank}"))
        here.load(str(folder / f"own-{number}"))
        asked = {n: [(draw_seed(3, one.name), one.prompt) for one in batch] for n, batch in mine.items()}
        found["expected"].append({n: plain(map(_sampled, here.sample(batch))) for n, batch in asked.items()})
        torch.manual_seed(0)
        engine.train_step(window_of(job, batcher, np.arange(8), ranks))
    ranks.barrier()
    found["left"] = sorted(item.name for item in (folder / "rollouts").iterdir())
    actors.close()
    return found


@pytest.mark.cluster
@pytest.mark.parametrize("shape", ["whole", "adapted"])
def test_actors_answer_with_each_rounds_weights(
    nodes: Nodes, tiny_recipe: dict[str, Any], tmp_path: Path, shape: str
) -> None:
    """Of a student in shards, also one with adapters; answers are those of its weights, and change with them."""
    if shape == "adapted":
        tiny_recipe["student"] |= {"lora": {"rank": 4, "targets": ["q_proj", "down_proj"]}}
    job = prepared_job(tiny_recipe, tmp_path / "data")
    ranks = run_on_ranks(two_rounds, 2, (nodes.address, nodes.environment), job, str(tmp_path), 2)
    whole = [ranks[0]["rounds"][number] | ranks[1]["rounds"][number] for number in range(2)]
    for number in range(2):
        assert sorted(whole[number]) == sorted(BATCHES)
        assert whole[number] == ranks[0]["expected"][number] | ranks[1]["expected"][number]
    assert whole[0] != whole[1], "a step changes what is sampled, or at least its log-probabilities"
    for of_rank in ranks:
        assert [len(there) for there in of_rank["there"]] == [1, 1], "weights of one round at a time"
        assert of_rank["left"] == []
    # One process per actor, each with both versions once.
    loads = [(line[0], line[2]) for line in noted(tmp_path / "journal") if line[1] == "load"]
    assert len(set(loads)) == len(loads) == 4 and len({process for process, _ in loads}) == 2


def killed(nodes: tuple[str, dict[str, str]], job: Job, target: str) -> dict[str, Any]:
    """A round, and the same round again while one of its actors is killed."""
    import ray

    from tests.helpers.engines import build

    join_cluster(nodes)
    folder = Path(target)
    engine, _ = build(job)
    actors = actors_of(engine.student, folder, 2, seconds=0.5)
    actors.take_weights()
    undisturbed = {number: plain(answers) for number, answers in actors.sample(BATCHES)}
    first = ray.get([actor.process.remote() for actor in actors._actors])
    order, disturbed = [], {}
    for number, answers in actors.sample(BATCHES):
        if not order:
            os.kill(first[0], signal.SIGKILL)
        order.append(number)
        disturbed[number] = plain(answers)
    after = ray.get([actor.process.remote() for actor in actors._actors])
    # An actor that was lost between two rounds has the next round's weights.
    os.kill(after[1], signal.SIGKILL)
    actors.release()
    actors.take_weights()
    again = {number: plain(answers) for number, answers in actors.sample(BATCHES)}
    actors.close()
    return {
        "undisturbed": undisturbed, "disturbed": disturbed, "again": again,
        "order": order, "first": first, "after": after,
    }  # fmt: skip


@pytest.mark.cluster
def test_what_a_lost_actor_was_asked_is_asked_again(nodes: Nodes, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tiny_recipe["cluster"]["workers"] = 1
    job = prepared_job(tiny_recipe, tmp_path / "data")
    (found,) = run_on_ranks(killed, 1, (nodes.address, nodes.environment), job, str(tmp_path))
    assert sorted(found["order"]) == sorted(BATCHES), "every batch once"
    assert found["undisturbed"] == found["disturbed"] == found["again"]
    assert found["first"][0] != found["after"][0] and found["first"][1] == found["after"][1]
    lines = noted(tmp_path / "journal")
    lost = str(found["first"][0])
    counts = [sum(line[:2] == [lost, word] for line in lines) for word in ("begin", "end")]
    assert counts[0] == counts[1] + 1, "it was killed in the middle of a batch"
    versions = {line[2] for line in lines if line[:2] == [lost, "load"]}
    assert {line[2] for line in lines if line[:2] == [str(found["after"][0]), "load"]} >= versions


def never_started(nodes: tuple[str, dict[str, str]], job: Job, target: str) -> list[str]:
    from tests.helpers.engines import build
    from uld_ds.errors import RunError

    join_cluster(nodes)
    engine, _ = build(job)
    group = ActorGroup("rollouts", "rollouts.actors", 1, cpus=64, gpus=0.0, wait_seconds=3.0)
    make = partial(SlowSampler, str(Path(target) / "journal"))
    ranks, folder = Ranks.current(), Path(target)
    try:
        RolloutActors(engine.student, seed=0, make=make, group=group, folder=folder, logs=folder, ranks=ranks)
    except RunError as error:
        found = [str(error)]
    make, group = (
        partial(_no_engine, "no such architecture"),
        ActorGroup("rollouts", "rollouts.actors", 1, cpus=0.5, gpus=0.0),
    )
    actors = RolloutActors(engine.student, seed=0, make=make, group=group, folder=folder, logs=folder, ranks=ranks)
    try:
        actors.take_weights()
    except FinalError as error:
        found.append(str(error))
    return found


def _no_engine(why: str) -> SlowSampler:
    raise ValueError(why)


@pytest.mark.cluster
def test_actors_that_do_not_start_are_said(nodes: Nodes, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tiny_recipe["cluster"]["workers"] = 1
    job = prepared_job(tiny_recipe, tmp_path / "data")
    (said,) = run_on_ranks(never_started, 1, (nodes.address, nodes.environment), job, str(tmp_path))
    assert said == [
        "no room for 1 actor(s) of rollouts (64 CPU, 0 GPU each) within 3 s (rollouts.actors)",
        "an actor of rollouts failed: weights cannot be taken (ValueError: no such architecture) (logs/rollouts-*.log)",
    ]


# ---- with Ray and vLLM


def vllm_rounds(nodes: tuple[str, dict[str, str]], job: Job, recipe: Recipe, target: str) -> dict[str, Any]:
    """Two rounds with a step between them by vLLM, and the log-probabilities of the same tokens in this process."""
    import ray
    import torch

    from tests.helpers.engines import build, window_of
    from uld_ds.checkpointing.export import write_weights
    from uld_ds.workers.rollout_actors import vllm_actors

    join_cluster(nodes)
    folder, found = Path(target), []
    engine, batcher = build(job)
    actors = vllm_actors(
        engine.student,
        recipe,
        ends=(2, 5),
        folder=folder / "rollouts",
        logs=folder / "logs",
        ranks=engine.ranks,
        on_gpu=False,
    )
    process = []
    for number in range(2):
        actors.take_weights()
        process += ray.get([actor.process.remote() for actor in actors._actors])
        answers = dict(actors.sample(BATCHES))
        write_weights(engine.student, folder / f"own-{number}", engine.ranks)
        if number == 1:
            os.kill(process[1], signal.SIGKILL)
            again = {batch: plain(sampled) for batch, sampled in actors.sample(BATCHES)}
            assert [[ids for ids, _, _ in again[batch]] for batch in BATCHES] == [
                [one.ids.tolist() for one in answers[batch]] for batch in BATCHES
            ]
        actors.release()
        lm = AutoModelForCausalLM.from_pretrained(folder / f"own-{number}").double()
        for batch, asked in BATCHES.items():
            for one, sampled in zip(asked, answers[batch], strict=True):
                whole = torch.from_numpy(np.concatenate([one.prompt, sampled.ids]).astype(np.int64))
                with torch.no_grad():
                    of_all = lm(whole[None]).logits[0, len(one.prompt) - 1 : -1].log_softmax(-1)
                right = of_all.gather(1, whole[len(one.prompt) :, None])[:, 0].numpy()
                found.append((number, sampled.ids.tolist(), sampled.ended, abs(right - sampled.log_probs).max()))
        engine.train_step(window_of(job, batcher, np.arange(8), engine.ranks))
    actors.close()
    return {"answers": found, "process": process}


@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_vllm_samples_by_each_rounds_weights(
    nodes: Nodes, tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    """In one process for both rounds, and in another when that is killed; in a Python that has vLLM."""
    python = vllm_python()
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    student = save_tiny_model(tmp_path / "s", rows, kind="unigram", vocab_size=400, seed=2, tied=True, **sizes)
    tiny_recipe["student"] |= {"model": str(student)}
    tiny_recipe["training"]["optimizer"] = {"learning_rate": 0.05}
    tiny_recipe["cluster"]["workers"] = 1
    # The engine trains on given answers; the rounds are this test's own.
    job = prepared_job(tiny_recipe, tmp_path / "data")
    tiny_recipe["rollouts"] = {
        "engine": "vllm",
        "max_new_tokens": 12,
        "temperature": 0.8,
        "actors": {"python": python, "cpus": 1},
    }
    recipe = parse_recipe(tiny_recipe)
    (found,) = run_on_ranks(vllm_rounds, 1, (nodes.address, nodes.environment), job, recipe, str(tmp_path))
    assert len(set(found["process"])) == 1, "the engine was not started again"
    rounds = [[answer[1:] for answer in found["answers"] if answer[0] == number] for number in range(2)]
    assert [len(answers) for answers in rounds] == [12, 12]
    assert [ids for ids, _, _ in rounds[0]] != [ids for ids, _, _ in rounds[1]]
    for ids, ended, error in rounds[0] + rounds[1]:
        assert error < 1e-4
        assert ended == (ids[-1] in (2, 5)) or ended, "the checkpoint's own end counts, too"
        assert ended or len(ids) == 12
