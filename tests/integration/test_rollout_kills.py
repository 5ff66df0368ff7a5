"""A run with rollouts that is killed amid its rounds is the run that nobody touched: answers, losses, weights."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tests.helpers.killable import Training, losses, same_weights
from tests.helpers.tiny import save_tiny_model

STEPS, EVERY, BATCHES = 32, 4, 8
NUM_ROUNDS = STEPS // EVERY


def files(run_dir: Path, number: int) -> int:
    """Batches of a round that are on the disk."""
    return len(list((run_dir / "rollouts" / f"round-{number:06d}").glob("batch-*.parquet")))


def pids(training: Training) -> set[int]:
    return {rank.pid for rank in training.ranks()}


def another_group(training: Training) -> bool:
    """Wait for workers in place of those that are there."""
    victims = pids(training)
    return training.wait_until(lambda: pids(training) - victims, 120)


def strike(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def everything(training: Training) -> None:
    training.kill()


def driver(training: Training) -> None:
    training.kill_driver()


def all_ranks(training: Training) -> None:
    strike(training.ranks())


def first_rank(training: Training) -> None:
    strike(training.ranks()[:1])


def last_rank(training: Training) -> None:
    strike(training.ranks()[-1:])


def amid_a_round(training: Training) -> bool:
    """Wait for a round of which some batches are there, and others are not."""
    return training.wait_until(
        lambda: any(0 < files(training.run_dir, number) < BATCHES for number in range(NUM_ROUNDS))
    )


def amid_steps(training: Training) -> bool:
    """Wait for a step more than there are, and not for its checkpoint."""
    return training.has_steps(training.steps() + 1)


def amid_a_checkpoint(training: Training) -> bool:
    """Wait for a checkpoint whose files are not whole yet, most likely."""
    known = set(training.run_dir.glob("checkpoint_0*"))
    return training.wait_until(lambda: set(training.run_dir.glob("checkpoint_0*")) - known)


STRIKES: list[tuple[Callable[[Training], bool], Callable[[Training], None]]] = [
    (amid_a_round, last_rank),
    (amid_a_checkpoint, all_ranks),
    (amid_a_round, everything),
    (amid_steps, first_rank),
    (amid_a_round, first_rank),
    (amid_steps, driver),
    (amid_a_round, all_ranks),
    (amid_a_checkpoint, last_rank),
]


def answers_in(run_dir: Path) -> dict[str, Any]:
    """All answers of a run, by file: their tokens, log-probabilities and rows as plain values."""
    found = (run_dir / "rollouts").rglob("*.parquet")
    return {f"{file.parent.name}/{file.name}": pq.read_table(file).to_pydict() for file in found}


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    student = save_tiny_model(tmp_path / "s", rows, kind="unigram", vocab_size=400, seed=2, attention_dropout=0.2)
    tiny_recipe["student"]["model"] = str(student)
    tiny_recipe["objective"] = {"uld": 0.0, "ce": 1.0, "projection": 0.9, "top_ids": 16}
    tiny_recipe["training"] |= {"steps": STEPS, "checkpoint_every": 3, "keep_checkpoints": 2}
    tiny_recipe["evaluation"] |= {"every": 10}
    tiny_recipe["cluster"] |= {"max_failures": -1, "workers": 2}
    tiny_recipe["rollouts"] = {"share": 0.5, "every": EVERY, "max_new_tokens": 12, "batch_size": 2}
    return tiny_recipe


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ahead", [0, 1])
def test_kills_amid_rounds_change_nothing(recipe: dict[str, Any], tmp_path: Path, ahead: int) -> None:
    recipe["rollouts"]["ahead"] = ahead
    whole = Training(recipe | {"run": recipe["run"] | {"name": "whole"}}, tmp_path)
    assert whole.finish(600) == 0, whole.errors()[-3000:]
    expected = whole.facts()
    assert len(answers_in(whole.run_dir)) == NUM_ROUNDS * BATCHES

    kills: Counter[str] = Counter()
    partial = 0
    training, begin = Training(recipe, tmp_path), time.monotonic()
    for when, whom in STRIKES:
        if not when(training):
            if (training.run_dir / "result.json").is_file():
                break
            training = Training(recipe, tmp_path)
            assert when(training)
        whom(training)
        kills[f"{when.__name__}: {whom.__name__}"] += 1
        there = [files(training.run_dir, number) for number in range(NUM_ROUNDS)]
        partial += any(0 < number < BATCHES for number in there)
        if whom in (everything, driver):
            training = Training(recipe, tmp_path)
        elif training.is_running():
            # The next strike is at the new processes.
            assert another_group(training)
    if training.finish(600) != 0:
        training = Training(recipe, tmp_path)
        assert training.finish(600) == 0, training.errors()[-3000:]
    print(f"{sum(kills.values())} kills in {time.monotonic() - begin:.0f} s, {partial} amid a round: {dict(kills)}")
    assert sum(kills.values()) >= 4
    assert partial >= 1
    of_whole, of_killed = losses(whole.run_dir), losses(training.run_dir)
    assert all(len(values) == 1 for values in of_whole.values())
    assert of_killed == of_whole
    assert answers_in(training.run_dir) == answers_in(whole.run_dir)
    again = training.facts()
    assert again["final_loss"] == expected["final_loss"]
    assert again["bits_per_byte"] == expected["bits_per_byte"]
    assert same_weights(again["export_dir"], expected["export_dir"])
