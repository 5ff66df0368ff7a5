"""A teacher in Ray's actors: whoever asks is told about its own text, also when an actor is lost in between."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.model_scorer import ModelScorer
from tests.helpers.ranks import run_on_ranks
from tests.helpers.ray_nodes import Nodes, join_cluster, ray_nodes
from uld_ds.errors import FinalError, RunError
from uld_ds.utils.distributed import Ranks
from uld_ds.workers.actor_group import ActorGroup
from uld_ds.workers.scoring_actors import ScoringActors, _Wanted

GROUP = ActorGroup("teacher", "store.actors", 2, cpus=0.5, gpus=0.0)
TEXTS = [np.random.default_rng(number).integers(0, 300, 4 + 3 * number) for number in range(9)]
"""Texts of 4 to 28 tokens."""


def positions_of(ids: np.ndarray) -> np.ndarray:
    """Ask about every other token."""
    return np.arange(1, len(ids), 2)


def batches_of(lengths: list[int], max_tokens: int, cancelled: int | None = None) -> list[list[int]]:
    """Lengths of the texts that go together, of such a queue."""
    engine = object.__new__(ScoringActors)
    engine._max_tokens, engine._waiting = max_tokens, deque()
    for number, length in enumerate(lengths):
        future: Future[Any] = Future()
        if number == cancelled:
            future.cancel()
        engine._waiting.append(_Wanted((np.zeros(length, np.int32), np.ones(1, np.int32)), future))
    found = []
    while engine._waiting:
        found.append([len(wanted.text[0]) for wanted in engine._next_batch()])
    return found


def test_texts_go_together_up_to_a_number_of_tokens() -> None:
    assert batches_of([5, 5, 5, 5], 10) == [[5, 5], [5, 5]]
    assert batches_of([30, 5, 4, 2], 10) == [[30], [5, 4], [2]], "a longer one goes alone"
    assert batches_of([5, 5, 5], 10, cancelled=1) == [[5, 5]], "what nobody waits for any more is not asked"


def engine_without_actors() -> Any:
    """One whose texts nobody hands out."""
    engine = object.__new__(ScoringActors)
    engine._group, engine._vocab_size, engine._free = GROUP, 300, deque()
    engine._changed, engine._waiting, engine._owned, engine._closed = threading.Condition(), deque(), [], False
    return engine


def answered(**changes: Any) -> Future[Any]:
    values = {"log_probs": np.array([-1.0], np.float32), "ids": np.array([[4, 5]], np.int32)}
    values |= {"top": np.array([[-0.9, -1.5]], np.float32)} | changes
    answer: Future[Any] = Future()
    answer.set_result([tuple(values.values())] * 2)
    return answer


@pytest.mark.parametrize(
    "changes",
    [{"top": np.array([[0.9, -1.5]], np.float32)}, {"ids": np.zeros(3)}, {"ids": None}, {"top": np.float32(1)}],
    ids=["logits", "another shape", "nothing", "a number"],
)
def test_nobody_waits_for_ever_whatever_comes_back(changes: dict[str, Any]) -> None:
    engine = engine_without_actors()
    batch = [_Wanted((np.zeros(4, np.int32), np.array([2], np.int32))) for _ in range(2)]
    engine._take_back(batch, "actor", answered(**changes))
    for wanted in batch:
        assert wanted.future.exception(0) is not None
    assert list(engine._free) == ["actor"], "it can be asked again"
    good = [_Wanted((np.zeros(4, np.int32), np.array([2], np.int32))) for _ in range(2)]
    engine._take_back(good, "actor", answered())
    assert [wanted.future.result(0).ids.tolist() for wanted in good] == [[[4, 5]]] * 2


def test_a_lost_actor_may_be_made_anew_and_what_one_raised_it_would_raise_again() -> None:
    import ray

    lost, raised = (
        ray.exceptions.RayActorError(),
        ray.exceptions.RayTaskError("score", "ValueError: x", ValueError("x")),
    )
    for error, kind in ((lost, RunError), (raised, FinalError)):
        engine, answer = engine_without_actors(), Future[Any]()
        answer.set_exception(error)
        wanted = _Wanted((np.zeros(4, np.int32), np.array([2], np.int32)))
        engine._take_back([wanted], "actor", answer)
        assert type(wanted.future.exception(0)) is kind


def test_what_waits_when_it_is_closed_is_given_up() -> None:
    engine = engine_without_actors()
    future = engine.score([1, 2], np.array([1]))
    engine.close()
    assert future.cancelled() and not engine._waiting


# ---- with Ray


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with ray_nodes(1, cpus=4, environment={"PYTHONPATH": str(Path(__file__).parents[3])}) as found:
        yield found


def scored(nodes: tuple[str, dict[str, str]], model: str, vocab_size: int, target: str) -> dict[str, Any]:
    """Scores of all texts, asked at once; and again while an actor is killed."""
    import ray

    join_cluster(nodes)
    make = partial(ModelScorer, model, f"{target}/journal", seconds=0.3)
    ranks = Ranks.current()
    actors = ScoringActors(make, GROUP, max_tokens=40, vocab_size=vocab_size, logs=Path(target), ranks=ranks)
    rounds = []
    for number in range(2):
        futures = [actors.score(ids.tolist(), positions_of(ids)) for ids in TEXTS]
        if number == 1 and ranks.is_first:
            os.kill(ray.get(actors._owned[0].process.remote()), signal.SIGKILL)
        rounds.append([(s.log_probs, s.ids, s.top) for s in (future.result(120) for future in futures)])
    ranks.barrier()
    actors.close()
    try:
        ScoringActors(make, GROUP, max_tokens=9, vocab_size=9, logs=Path(target), ranks=ranks, version="1.2.4+cpu")
    except FinalError as error:
        return {"rounds": rounds, "version": actors.version, "other": str(error)}
    raise AssertionError("engines of another version were taken")


@pytest.mark.cluster
def test_every_text_is_scored_by_some_actor(nodes: Nodes, tiny_teacher: Path, tmp_path: Path) -> None:
    here = (nodes.address, nodes.environment)
    lm = AutoModelForCausalLM.from_pretrained(tiny_teacher).eval()
    for of_rank in run_on_ranks(scored, 2, here, str(tiny_teacher), lm.config.vocab_size, str(tmp_path)):
        assert of_rank["version"] == "1.2.3"
        assert of_rank["other"] == (
            "store.actors: the engines of teacher are of versions 1.2.3, 1.2.3, here it is 1.2.4+cpu"
        )
        for answers in of_rank["rounds"]:
            for ids, (log_probs, found, top) in zip(TEXTS, answers, strict=True):
                with torch.no_grad():
                    of_all = lm(torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)[positions_of(ids) - 1]
                right = of_all[torch.arange(len(of_all)), torch.from_numpy(ids[positions_of(ids)])]
                np.testing.assert_allclose(log_probs, right.numpy(), atol=1e-5)
                np.testing.assert_allclose(top, of_all.topk(8).values.numpy(), atol=1e-5)
                np.testing.assert_allclose(top, of_all.gather(1, torch.from_numpy(found)).numpy(), atol=1e-5)
    calls = [line.split() for line in (tmp_path / "journal").read_text().splitlines()]
    assert len({call[0] for call in calls}) == 3, "two actors, and the one made in the place of a lost one"
    assert max(sum(map(int, call[1:])) for call in calls) <= 40
    assert max(len(call) for call in calls) > 2, "texts go together"


def refused(nodes: tuple[str, dict[str, str]], target: str) -> list[str]:
    join_cluster(nodes)
    found = []
    for make, group in (
        (_no_engine, GROUP),
        (_no_engine, ActorGroup("teacher", "store.actors", 1, cpus=64, gpus=0.0, wait_seconds=3.0)),
    ):
        try:
            ScoringActors(make, group, max_tokens=40, vocab_size=9, logs=Path(target), ranks=Ranks.current())
        except RunError as error:
            found.append(str(error))
    return found


def _no_engine() -> ModelScorer:
    raise ValueError("no such architecture")


@pytest.mark.cluster
def test_an_engine_that_does_not_start_is_said_on_every_rank(nodes: Nodes, tmp_path: Path) -> None:
    said = [
        "an actor of teacher failed: the engine does not start (ValueError: no such architecture) (logs/teacher-*.log)",
        "no room for 1 actor(s) of teacher (64 CPU, 0 GPU each) within 3 s (store.actors)",
    ]
    assert run_on_ranks(refused, 2, (nodes.address, nodes.environment), str(tmp_path)) == [said, said]
