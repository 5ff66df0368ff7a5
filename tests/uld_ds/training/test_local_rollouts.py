"""Rounds that are sampled in the workers: the same answers on any number of ranks, in any thread."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.ranks import run_on_ranks
from tests.helpers.student_engines import CPU, logits_of, student_of, student_recipe, take_step
from uld_ds.errors import RunError
from uld_ds.generation.sampling import Asked, Sampled, Sampling, batches_by_length
from uld_ds.training.local_rollouts import LocalEngine

Plain = dict[int, list[tuple[list[int], list[float], bool]]]
SAMPLING = Sampling(12, seed=5)


def asked_batches(batch_size: int = 3) -> dict[int, list[Asked]]:
    draw = np.random.default_rng(2)
    lengths = (3, 17, 8, 1, 8, 11, 2)
    asked = [Asked(f"0:{n}:0", draw.integers(1, 300, n).astype(np.int32)) for n in lengths]
    return {number: [asked[n] for n in batch] for number, batch in enumerate(batches_by_length(asked, batch_size))}


def plain(found: dict[int, list[Sampled]]) -> Plain:
    return {
        number: [(one.ids.tolist(), one.log_probs.tolist(), one.ended) for one in answers]
        for number, answers in found.items()
    }


def engine_around(student: Any, *, own_copy: bool) -> LocalEngine:
    return LocalEngine(student, SAMPLING, ends=[3, 50], padding=0, device=CPU, own_copy=own_copy)


def one_round(recipe: dict[str, Any], own_copy: bool) -> tuple[Plain, Plain]:
    """This rank's share of a round before the first step, and of one after it."""
    student = student_of(recipe)
    engine = engine_around(student, own_copy=own_copy)
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = {number: batch for number, batch in asked_batches().items() if number % ranks == rank}
    rounds = []
    for _ in range(2):
        engine.take_weights()
        rounds.append(plain(dict(engine.sample(mine))))
        engine.release()
        take_step(student, torch.tensor([[5, 9, 17, 30], [7, 60, 22, 3]]))
    engine.close()
    return rounds[0], rounds[1]


@pytest.mark.parametrize(("stage", "own_copy"), [("zero3", False), ("zero2", False), ("zero2", True)])
def test_answers_are_the_same_on_one_rank_and_two(tiny_recipe: dict[str, Any], stage: str, own_copy: bool) -> None:
    alone, *_ = run_on_ranks(one_round, 1, student_recipe(tiny_recipe, ranks=1, stage=stage), own_copy)
    shares = run_on_ranks(one_round, 2, student_recipe(tiny_recipe, ranks=2, stage=stage), own_copy)
    assert shares[0][0] | shares[1][0] == alone[0]
    assert not shares[0][0].keys() & shares[1][0].keys()
    # What the step has learned is sampled by: (on two ranks it saw twice as much.)
    assert alone[1] != alone[0]
    assert any(ended for answers in alone[0].values() for _, _, ended in answers)
    assert any(not ended for answers in alone[0].values() for _, _, ended in answers)


def beside_training(recipe: dict[str, Any]) -> tuple[Plain, Plain, bool]:
    """A round that is sampled in a thread while two steps are taken, and one that is sampled before them."""
    found: list[Plain] = []
    logits = []
    for threaded in (False, True):
        student = student_of(recipe)
        engine = engine_around(student, own_copy=True)
        engine.take_weights()

        def sample(engine: LocalEngine = engine) -> None:
            found.append(plain(dict(engine.sample(asked_batches()))))

        if threaded:
            thread = threading.Thread(target=sample)
            thread.start()
        else:
            sample()
        for _ in range(2):
            take_step(student)
        if threaded:
            thread.join()
        engine.release()
        logits.append(logits_of(student))
    return found[0], found[1], bool(torch.equal(*logits))


@pytest.mark.parametrize("stage", ["zero3", "zero2"])
def test_a_round_is_the_same_in_a_thread_beside_training(tiny_recipe: dict[str, Any], stage: str) -> None:
    for before, beside, same_weights in run_on_ranks(
        beside_training, 2, student_recipe(tiny_recipe, ranks=2, stage=stage)
    ):
        assert before == beside
        assert same_weights


def left_alone(recipe: dict[str, Any]) -> tuple[list[bool], bool, bool, bool]:
    """The engine's own module samples between two halves of training, of which it must leave nothing changed."""
    student = student_of(recipe)
    student.train()
    engine = engine_around(student, own_copy=False)
    options, draws = student.module.lm.generation_config, torch.get_rng_state()
    engine.take_weights()
    modes = []
    for _ in engine.sample(asked_batches()):
        modes.append(all(part.training for part in student.module.modules()))
    engine.release()
    same_options = student.module.lm.generation_config is options
    same_draws = torch.equal(draws, torch.get_rng_state())
    return modes, same_options, bool(same_draws), bool(student.module.lm.is_gradient_checkpointing)


def test_the_student_is_left_as_it_was(tiny_recipe: dict[str, Any]) -> None:
    recipe = student_recipe(tiny_recipe, ranks=1, stage="zero2", gradient_checkpointing=True)
    modes, *others = run_on_ranks(left_alone, 1, recipe)[0]
    assert modes == [True] * 3
    assert others == [True] * 3


def without_weights(recipe: dict[str, Any]) -> str:
    engine = engine_around(student_of(recipe), own_copy=True)
    with pytest.raises(RunError) as raised:
        next(engine.sample(asked_batches()))
    return str(raised.value)


def test_a_round_needs_weights(tiny_recipe: dict[str, Any]) -> None:
    assert "without the weights" in run_on_ranks(without_weights, 1, student_recipe(tiny_recipe, ranks=1))[0]
