"""Runs that are compared begin alike, see the same and take as many steps; what is written about them is computed."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import on_policy
import on_policy_cost as cost
import on_policy_table as table
import pytest
from on_policy_models import answer_ids, learning_rate_share, padded, prompt_ids, right
from on_policy_setup import (
    ARMS,
    BASELINE,
    FULL,
    START,
    TASKS,
    Cell,
    Gold,
    Layout,
    Ours,
    gold_settings,
    recipe_of,
    setup_facts,
    write_rows,
)

from uld_ds.recipe import parse_recipe
from uld_ds.tokenization.training import train_tokenizer

OURS = [arm for arm, what in ARMS.items() if isinstance(what, Ours)]
THEIRS = [arm for arm, what in ARMS.items() if isinstance(what, Gold)]


def run(solved: str, *, arm: str = "x", seed: int = 0) -> dict[str, Any]:
    """A run that solved the problems marked 1."""
    setup = {"size": {"gold": 10, "prompts": 40, "steps": 5, "batch_size": 8}}
    record: dict[str, Any] = {"cell": vars(Cell("number_sorting", arm, seed)), "setup": setup}
    record |= {"right": [int(mark) for mark in solved], "student_tokens": 2e6, "step_seconds": 0.25, "cpu_seconds": 7.0}
    return record


def by_seed(*solved: str) -> dict[int, dict[str, Any]]:
    return {seed: run(marks, seed=seed) for seed, marks in enumerate(solved)}


# --- recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_arm_begins_alike_and_takes_as_many_steps(task: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path, FULL, task)
    begins = recipe_of(layout, Cell(task, START, 1))
    assert begins.student.model == str(layout.student(1)) and begins.training.steps == FULL.start_steps
    assert begins.objective.ce == 1.0 and [term.key for term in begins.objective.weighed_terms] == ["ce"]
    for arm in OURS:
        recipe = recipe_of(layout, Cell(task, arm, 1))
        assert recipe.student.model == str(layout.trained(START, 1)), arm
        assert (recipe.training.steps, recipe.training.batch_size, recipe.run.seed) == (FULL.steps, FULL.batch_size, 1)
        assert recipe.training.optimizer == begins.training.optimizer
        assert (recipe.rollouts is not None) == arm.startswith("rollouts")
        if recipe.rollouts is not None:
            assert recipe.rollouts.prompts is not None and recipe.rollouts.prompts.path == str(layout.answered)
            # More than the longest right answer with its end: 5 numbers, or 7 letters, or 3 sums, a token a byte.
            assert recipe.rollouts.max_new_tokens == layout.task.max_new_tokens
    for arm in THEIRS:
        told = gold_settings(layout, Cell(task, arm, 1))
        assert told["student"] == str(layout.trained(START, 1)) and told["data"] == str(layout.data("labeled", 1))
        said = told["arguments"]
        assert said["max_steps"] == FULL.steps and said["per_device_train_batch_size"] == FULL.batch_size
        assert said["learning_rate"] == begins.training.optimizer.learning_rate


def test_nobody_sees_what_is_held_out_and_seeds_have_gold_of_their_own(tmp_path: Path) -> None:
    size = replace(FULL, gold=7, prompts=20, held_out=10)
    task = "number_sorting"
    layout = Layout(tmp_path, size, task)
    layout.shared.mkdir()
    rows = [{"prompt": f"< {number}", "answer": str(number)} for number in range(TASKS[task].teacher_examples + 100)]
    write_rows(layout.rows, rows)
    parts = [layout.held_out(), layout.unanswered(), *(layout.gold(seed) for seed in range(10)), layout.of_teacher()]
    prompts = [row["prompt"] for part in parts for row in part]
    assert len(prompts) == len(set(prompts)) == 10 + 20 + 70 + TASKS[task].teacher_examples
    write_rows(layout.rows, rows[:-1])
    with pytest.raises(ValueError, match="too few"):
        layout.of_teacher()


def test_files_of_another_size_have_other_names_and_one_teacher(tmp_path: Path) -> None:
    one, other = (Layout(tmp_path, size, "number_sorting") for size in (FULL, replace(FULL, gold=2_000)))
    assert one.teacher == other.teacher and one.answered != other.answered
    assert Layout(tmp_path, replace(FULL, teacher_share=0.5), "number_sorting").teacher != one.teacher


def test_a_result_of_other_settings_is_no_result(tmp_path: Path) -> None:
    cell = Cell("number_sorting", BASELINE, 0)
    (tmp_path / f"{cell.name}.json").write_text(json.dumps(run("1") | {"setup": setup_facts(FULL, cell)}))
    assert on_policy.load(tmp_path, cell, FULL) is not None
    assert on_policy.load(tmp_path, cell, replace(FULL, steps=FULL.steps + 1)) is None
    assert on_policy.load(tmp_path, replace(cell, seed=1), FULL) is None


def test_the_baseline_is_always_there() -> None:
    options = on_policy.parse(["--arm", "rollouts", "--seeds", "2", "--task", "chain_sum"])
    cells = on_policy.cells_of(options)
    assert [(cell.arm, cell.seed) for cell in cells] == [(arm, n) for n in (0, 1) for arm in (BASELINE, "rollouts")]
    assert not [arm for arm in on_policy.parse(["--arm", "all", "--no-trl"]).arm if arm in THEIRS]
    assert len({Cell(task, arm, 0).name for task in TASKS for arm in [START, *ARMS]}) == len(TASKS) * (1 + len(ARMS))


# --- models -----------------------------------------------------------------------------------------------------


def test_only_answers_are_learned() -> None:
    row = {"prompt": "> 1 22", "answer": "22 1"}
    tokenizer: Any = train_tokenizer("bpe", 261, [row["prompt"]])
    prompt, answer = prompt_ids(tokenizer, row), answer_ids(tokenizer, row)
    assert tokenizer.decode(prompt) == "<|user|>> 1 22<|end|><|assistant|>"
    assert tokenizer.decode(answer) == "22 1<|end|>"
    batch = padded([(prompt, answer), (prompt, answer[:1])], padding=tokenizer.pad_token_id)
    assert batch["labels"][0].tolist() == [-100] * len(prompt) + answer
    assert batch["labels"][1].tolist() == [-100] * len(prompt) + answer[:1] + [-100] * (len(answer) - 1)
    assert batch["attention_mask"].sum(1).tolist() == [len(prompt) + len(answer), len(prompt) + 1]
    assert right(["22 1", "22 1 "], [row, row]) == [True, False]


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [learning_rate_share(step, 400) for step in range(400)]
    assert shares[0] == pytest.approx(1 / 50) and shares[50] == 1.0 and max(shares) == 1.0
    # Half way down, between 1 and 0.05.
    assert shares[225] == pytest.approx(0.525)
    assert shares[399] == pytest.approx(0.05, abs=1e-3)


# --- tables -----------------------------------------------------------------------------------------------------


def test_accuracy_and_difference_are_of_seeds() -> None:
    base, arm = by_seed("1000", "1100", "1110"), by_seed("1100", "1110", "1111")
    found = table.accuracy(arm)
    assert found.value == 75.0 and found.low < 75.0 < found.high
    # The same 25 points with every seed: nothing is left to the seeds.
    found = table.difference(arm, base)
    assert (found.value, found.low, found.high) == pytest.approx((25.0, 25.0, 25.0))
    # 0, 25 and 50 points: standard deviation 25, half an interval 4.303 * 25 / sqrt(3).
    found = table.difference(by_seed("1000", "1110", "1111"), by_seed("1000", "1100", "1100"))
    assert (found.value, found.high - found.value) == pytest.approx((25.0, 4.303 * 25 / math.sqrt(3)))
    assert table.difference(by_seed("11"), by_seed("10")).low == -math.inf
    with pytest.raises(ValueError, match="no seed in common"):
        table.difference({1: run("1", seed=1)}, by_seed("1"))


def test_the_gap_is_that_to_the_teacher() -> None:
    teacher = run("1111111110")
    base, arm = by_seed("1" * 5 + "0" * 5), by_seed("1" * 7 + "0" * 3)
    closed = table.gap_closed(arm, base, teacher)
    # From 50 to 70 of 50 to 90.
    assert closed is not None and closed.value == pytest.approx(50.0) and closed.low <= 50.0 <= closed.high
    assert table.gap_closed(arm, by_seed("1" * 9 + "0"), teacher) is None
    # An arm that is as the teacher closes all of it, whichever problems are drawn.
    same = table.gap_closed(by_seed("1111111110"), base, teacher)
    assert same is not None and (same.low, same.high) == pytest.approx((100.0, 100.0))


def test_the_table_says_what_was_aimed_at() -> None:
    solved = {BASELINE: 4, "rollouts": 8, "TRL GOLD": 5, "TRL GOLD, hybrid": 6}
    records = [run("1" * n + "0" * (10 - n), arm=arm, seed=seed) for arm, n in solved.items() for seed in (0, 1)]
    begun = [run("1000000000", arm=START, seed=seed) for seed in (0, 1)]
    text = table.tables(records, begun, {"number_sorting": run("1" * 10)}, [*ARMS], BASELINE)
    assert "**number_sorting**: 10 gold examples, 40 prompts without" in text
    assert "the teacher solves 100.0 %" in text and "begin from 10.0 / 10.0 %; then 5 steps of 8 examples" in text
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["rollouts"].startswith("| rollouts | 80.0 [") and "| 80.0 / 80.0 | +40.0 [+40.0, +40.0] | 67 [" in text
    assert rows[BASELINE].endswith("| 40.0 / 40.0 |  |  | 2.00 | 0.25 | 7 |")
    assert "- rollouts: 67 % of the gap closed (aim: 50) - reached" in text
    assert "+40.0 points over the baseline, the best of GOLD's (TRL GOLD, hybrid) +20.0 (aim: twice as much)" in text
    assert text.endswith("reached") and "rollouts alone" not in text


def test_the_chart_is_drawn_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    chart = importlib.import_module("rollout_chart")
    records = [run("1" * n + "0" * (10 - n), arm=arm, seed=n) for arm in (BASELINE, "rollouts") for n in (3, 4)]
    text = table.tables(records, [], {"number_sorting": run("1" * 9 + "0")}, [*ARMS], BASELINE)
    picture = chart.rollouts({"on_policy --folder x": text, "on_policy --quick": "", "on_policy_cost": ""})
    # Two arms of two seeds: 30 and 40 %; the teacher at 90 %.
    assert picture.count("<circle") == 4 and picture.count('cx="350.0"') == picture.count('cx="380.0"') == 2
    assert "M530.0 52.0" in picture and ">number_sorting<" in picture


def test_resampling_keeps_pairs() -> None:
    points = np.stack([np.arange(12).reshape(3, 4), np.arange(12).reshape(3, 4)], axis=-1)
    drawn = table._resampled(points, np.random.default_rng(0))
    assert drawn.shape == (3, 4, 2) and (drawn[..., 0] == drawn[..., 1]).all()


# --- cost -------------------------------------------------------------------------------------------------------


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
