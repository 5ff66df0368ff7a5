"""A step on own answers is compared turn by turn, and all arms sample alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import on_policy_cost as cost

from uld_ds.recipe import parse_recipe


def arm_of(name: str, seconds: list[float], peak: int) -> dict[str, Any]:
    records = [{"seconds": value, "sampling_seconds": value / 4, "student_tokens": 96.0} for value in seconds]
    return {"name": name, "seconds": seconds, "peak_bytes": peak, "failed": None, "records": records}


def test_cost_is_compared_turn_by_turn() -> None:
    arms = [arm_of("rollouts", [1.0, 2.0, 1.0], 10**9), arm_of("TRL GOLD", [3.0, 6.0, 3.0], 2 * 10**9)]
    text = cost.table([{"pair": "sorting", "arms": arms}])
    assert "| sorting | rollouts | 1.00 (1.00 to 2.00) | 25% | 96 | 1.00 |" in text
    assert "rollouts against TRL GOLD: 3.0 (3.0 to 3.0) times faster (aim 2) - reached" in text
    assert "rollouts against TRL GOLD: 0.50 of its memory (aim 0.7) - reached" in text


def test_all_arms_of_the_cost_sample_alike(tmp_path: Path) -> None:
    pair = cost.Pair("teacher", "student", tmp_path / "rows.jsonl", 8, 64, 256)
    recipes = [parse_recipe(cost.recipe_of(pair, tmp_path, "x", 10, settings)) for settings in cost.ROLLOUTS.values()]
    gold = cost.gold_settings(pair, 10, {})["arguments"]
    for recipe in recipes:
        rollouts = recipe.rollouts
        assert rollouts is not None and recipe.own_examples == gold["per_device_train_batch_size"] == 8
        assert (rollouts.temperature, rollouts.top_p) == (gold["temperature"], gold["top_p"])
        assert rollouts.max_new_tokens == gold["max_completion_length"] == 64
        assert recipe.training.optimizer.learning_rate == gold["learning_rate"] == cost.BARELY
    assert [recipe.rollouts.ahead for recipe in recipes if recipe.rollouts] == [0, 1, 0]
    assert gold["lmbda"] == 1.0
