"""A run that is killed again and again, at moments nobody chose, is the run that nobody touched: bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from tests.helpers.killable import Training, losses, same_weights
from tests.helpers.tiny import save_tiny_model

STEPS = 400
KILLS = 20


def strike(processes: list[psutil.Process]) -> None:
    """Processes come and go while they are looked for: at least one was there."""
    hit = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
            hit += 1
    assert hit


def kill_rank(training: Training, chance: random.Random) -> None:
    strike([chance.choice(training.ranks())])


def kill_all_ranks(training: Training, chance: random.Random) -> None:
    strike(training.ranks())


def kill_in_checkpoint(training: Training, chance: random.Random) -> None:
    """While a rank's files have their names of before they are whole; or, if that is over too soon, right after."""
    folder = training.run_dir
    known = {item.name for item in folder.glob("checkpoint_0*")}

    def begun() -> bool:
        return any(item.name not in known for item in folder.glob("checkpoint_0*"))

    if training.wait_until(begun, 120):
        time.sleep(chance.uniform(0, 0.03))
        strike([chance.choice(training.ranks())])


def kill_driver(training: Training, chance: random.Random) -> None:
    training.kill_driver()


def kill_everything(training: Training, chance: random.Random) -> None:
    training.kill()


def kill_head(training: Training, chance: random.Random) -> None:
    strike(training.heads())
    # Without its head a cluster ends, and with it the command.
    assert training.finish(200) != 0


KINDS: list[Callable[[Training, random.Random], None]] = [
    kill_rank,
    kill_in_checkpoint,
    kill_all_ranks,
    kill_driver,
    kill_in_checkpoint,
    kill_rank,
    kill_everything,
    kill_in_checkpoint,
    kill_all_ranks,
    kill_head,
]


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    student = save_tiny_model(tmp_path / "s", rows, kind="unigram", vocab_size=400, seed=2, attention_dropout=0.2)
    tiny_recipe["student"]["model"] = str(student)
    tiny_recipe["training"] |= {"steps": STEPS, "checkpoint_every": 4, "keep_checkpoints": 2}
    tiny_recipe["evaluation"] |= {"every": 60}
    tiny_recipe["cluster"] |= {"max_failures": -1}
    return tiny_recipe


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_kills_change_nothing(recipe: dict[str, Any], tmp_path: Path) -> None:
    whole = Training(recipe | {"run": recipe["run"] | {"name": "whole"}}, tmp_path)
    assert whole.finish(600) == 0, whole.errors()[-3000:]
    expected = whole.facts()

    seed = int(os.environ.get("ULD_DS_TEST_SEED", "0"))
    chance = random.Random(seed)
    kills: Counter[str] = Counter()
    waits: list[float] = []
    training, begin = Training(recipe, tmp_path), time.monotonic()
    while sum(kills.values()) < KILLS:
        kind = KINDS[sum(kills.values()) % len(KINDS)]
        before, steps = training.last_committed(), training.steps()
        # Every attempt gets somewhere: its kill comes at a moment nobody chose after a checkpoint of its own.
        if not training.has_steps(steps + 1):
            break
        waits.append(time.monotonic() - begin)
        if not training.commits_after(before):
            break
        time.sleep(chance.uniform(0, 0.4))
        begin = time.monotonic()
        kind(training, chance)
        kills[kind.__name__] += 1
        print(f"{kind.__name__} after {training.last_committed()} steps, {waits[-1]:.1f} s to the first", flush=True)
        if not training.is_running():
            training = Training(recipe, tmp_path)
    assert training.finish(900) == 0, training.errors()[-3000:]
    times = sorted(waits[1:])
    print(
        f"seed {seed}: {sum(kills.values())} kills {dict(kills)}; seconds from a kill to the next step: "
        f"median {times[len(times) // 2]:.1f}, most {times[-1]:.1f}"
    )
    assert sum(kills.values()) >= KILLS, kills

    again = training.facts()
    once = losses(whole.run_dir)
    assert {step: len(values) for step, values in once.items()} == dict.fromkeys(range(1, STEPS + 1), 1)
    assert losses(training.run_dir) == once
    assert same_weights(again["export_dir"], expected["export_dir"])
    for fact in ("final_loss", "bits_per_byte", "best_checkpoint"):
        mine, theirs = (json.loads(json.dumps(facts[fact]).replace("/tiny/", "/whole/")) for facts in (again, expected))
        assert mine == theirs, fact
    client = mlflow.MlflowClient(again["tracking_uri"])
    points = client.get_metric_history(again["run_id"], "train/loss")
    assert [point.step for point in points] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_rank_that_hangs_is_noticed_and_replaced(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"] |= {"steps": 200}
    recipe["cluster"] |= {"hang_seconds": 5, "max_failures": 1}
    training = Training(recipe, tmp_path)
    assert training.wait_until(lambda: training.committed("checkpoint_00000000")), training.errors()[-3000:]
    victim = training.ranks()[-1]
    others = [rank.pid for rank in training.ranks() if rank.pid != victim.pid]
    victim.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    assert training.wait_until(
        lambda: not victim.is_running() and not {r.pid for r in training.ranks()} & {victim.pid, *others}, 90
    )
    noticed = time.monotonic() - begin
    print(f"a stopped rank was gone after {noticed:.1f} s")
    assert training.finish(400) == 0, training.errors()[-3000:]
    assert all(len(values) == 1 for values in losses(training.run_dir).values())
    assert training.facts()["steps"] == 200
