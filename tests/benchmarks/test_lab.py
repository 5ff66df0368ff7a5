"""Runs that are compared begin alike, see the same and take as many steps; what is written about them is computed."""

from __future__ import annotations

import importlib
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import lab
import lab_table as table
import pytest
import torch
from lab_arms import ARMS, BASELINE, LABELED, START, Gold, Ours
from lab_cell import measured
from lab_measure import Curve, Held, answer_ids, padded, prompt_ids, right_answers
from lab_models import learning_rate_share
from lab_setup import SETTINGS, Cell, Layout, gold_settings, recipe_of, setting_of, setup_facts, swapped, write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from uld_ds.tokenization.training import train_tokenizer

OURS = [arm for arm, what in ARMS.items() if isinstance(what, Ours)]
THEIRS = [arm for arm, what in ARMS.items() if isinstance(what, Gold)]
NAME = "coarse, noisy"


def run(solved: str, *, arm: str = "x", seed: int = 0, budget: int = 100) -> dict[str, Any]:
    """A run that solved the problems marked 1, half as many when it was half way through."""
    share = solved.count("1") / len(solved)
    facts = {"gold": 10, "noise": 0.3, "teacher_noise": 0.1, "prompts": 40, "held_out": 10, "steps": 5, "batch_size": 8}
    return {
        "cell": vars(Cell(NAME, arm, seed, budget)),
        "setup": {"setting": facts},
        "right": [int(mark) for mark in solved],
        "bits": 0.5,
        "curve": [{"step": n, "tokens": n * 1e6, "solved": share * n / 2} for n in range(3)],
        **{"student_tokens": 2e6, "step_seconds": 0.25, "cpu_seconds": 7.0},
    }


def by_seed(*solved: str) -> dict[int, dict[str, Any]]:
    return {seed: run(marks, seed=seed) for seed, marks in enumerate(solved)}


# --- recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_arm_begins_alike_and_takes_as_many_steps(name: str, tmp_path: Path) -> None:
    setting = SETTINGS[name]
    layout = Layout(tmp_path, setting)
    begins = recipe_of(layout, Cell(name, START, 1))
    assert begins.student.model == str(layout.student(1)) and begins.training.steps == setting.start_steps
    assert begins.objective.ce == 1.0 and [term.key for term in begins.objective.weighed_terms] == ["ce"]
    for arm in OURS:
        recipe = recipe_of(layout, Cell(name, arm, 1))
        training = recipe.training
        assert recipe.student.model == str(layout.start(1)), arm
        assert (training.steps, training.batch_size, recipe.run.seed) == (setting.steps, setting.batch_size, 1)
        assert training.optimizer == begins.training.optimizer and training.schedule == begins.training.schedule
        assert recipe.data.train.path == str(layout.data("gold" if arm == BASELINE else "labeled", 1)), arm
        # Given answers: weights of all terms together are 1, so that arms differ in what they learn, not in how fast.
        weights = [getattr(recipe.objective, term.key) for term in recipe.objective.weighed_terms]
        assert sum(weights) == pytest.approx(1.0), arm
        assert (recipe.rollouts is not None) == arm.startswith("rollouts")
        if recipe.rollouts is not None:
            assert recipe.rollouts.prompts is not None and recipe.rollouts.prompts.path == str(layout.answered)
            # More than the longest right answer with its end, a token a byte: 4 numbers, or the sums of 0-9-9-9-9.
            assert recipe.rollouts.max_new_tokens == setting.max_new_tokens >= len("-9 -18 -27 -36") + 1
    for arm in THEIRS:
        told = gold_settings(layout, Cell(name, arm, 1))
        assert told["student"] == str(layout.start(1)) and told["data"] == str(layout.data("labeled", 1))
        said = told["arguments"]
        assert said["max_steps"] == setting.steps and said["per_device_train_batch_size"] == setting.batch_size
        assert said["learning_rate"] == begins.training.optimizer.learning_rate
    assert recipe_of(layout, Cell(name, LABELED, 1, 40)).training.steps == round(0.4 * setting.steps)


def test_nobody_sees_what_is_held_out_and_seeds_have_gold_of_their_own(tmp_path: Path) -> None:
    setting = replace(SETTINGS["coarse"], gold=7, prompts=20, held_out=10, teacher_examples=30)
    layout = Layout(tmp_path, setting)
    rows = [{"prompt": f"<{number}", "answer": str(number)} for number in range(10 + 20 + 8 * 7 + 30)]
    write_rows(layout.rows, rows)
    parts = [layout.held_out(), layout.unanswered(), *(layout.gold(seed) for seed in range(8)), layout.taught()]
    prompts = [row["prompt"] for part in parts for row in part]
    assert len(prompts) == len(set(prompts)) == len(rows)
    write_rows(layout.rows, rows[:-1])
    with pytest.raises(ValueError, match="too few"):
        layout.taught()
    for full in SETTINGS.values():
        for size in (full, full.quick()):
            # Some problems are drawn twice.
            differ = {"sorting few": 0.65, "chain_sum digits": 0.85}.get(size.problems, 0.97)
            assert differ * size.drawn > size.held_out + size.prompts + 8 * size.gold + size.teacher_examples


def test_noise_swaps_two_neighbors_and_leaves_what_is_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f">{number}", "answer": "9 7 5 3"} for number in range(2_000)]
    found = swapped(rows, 0.3)
    wrong = [row["answer"] for row in found if row["answer"] != "9 7 5 3"]
    assert len(wrong) / len(rows) == pytest.approx(0.3, abs=0.03)
    assert set(wrong) == {"7 9 5 3", "9 5 7 3", "9 7 3 5"}
    # By the problem alone: another file, another order.
    assert swapped(rows[::-1], 0.3) == found[::-1] and swapped(rows, 0.0) == rows
    setting = replace(SETTINGS["fine, noisy"], gold=100, prompts=100, held_out=100, teacher_examples=1_000)
    layout = Layout(tmp_path, setting)
    write_rows(layout.rows, rows)
    assert layout.held_out() == rows[:100]
    assert layout.gold(0) == found[200:300] and layout.taught() == swapped(rows, setting.teacher_noise)[-1_000:]


def test_files_of_other_settings_have_other_names_and_one_teacher(tmp_path: Path) -> None:
    one, other = (Layout(tmp_path, setting) for setting in (SETTINGS["fine"], replace(SETTINGS["fine"], gold=1_999)))
    assert one.teacher == other.teacher and one.answered != other.answered
    assert Layout(tmp_path, replace(SETTINGS["fine"], teacher_steps=3)).teacher != one.teacher
    assert Layout(tmp_path, SETTINGS["fine, noisy"]).rows == one.rows != Layout(tmp_path, SETTINGS["coarse"]).rows


def test_a_result_of_other_settings_is_no_result(tmp_path: Path) -> None:
    cell, full = Cell(NAME, BASELINE, 0), lab.Lab(tmp_path, quick=False)
    full.results.mkdir()
    (full.results / f"{cell.name}.json").write_text(
        json.dumps(run("1") | {"setup": setup_facts(setting_of(NAME, quick=False), cell)})
    )
    assert full.load(cell) is not None
    assert lab.Lab(tmp_path, quick=True).load(cell) is None
    assert full.load(replace(cell, seed=1)) is None and full.load(replace(cell, budget=40)) is None


def test_both_baselines_are_always_there() -> None:
    options = lab.parse(["--arm", "rollouts, reverse", "--seeds", "2", "--setting", "fine", "--budget", "40"])
    cells = lab.cells_of(options)
    assert [(cell.budget, cell.arm, cell.seed) for cell in cells] == [
        (budget, arm, seed)
        for seed in (0, 1)
        for budget in (100, 40)
        for arm in (BASELINE, LABELED, "rollouts, reverse")
    ]
    assert not [arm for arm in lab.parse(["--no-trl"]).arm if arm in THEIRS]
    names = {Cell(name, arm, 0, budget).name for name in SETTINGS for arm in [START, *ARMS] for budget in (40, 100)}
    assert len(names) == len(SETTINGS) * (1 + len(ARMS)) * 2


# --- measuring --------------------------------------------------------------------------------------------------


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


def test_a_curve_has_the_accuracy_of_greedy_answers_and_their_bits() -> None:
    rows = [{"prompt": f">{number}", "answer": str(number)} for number in (1, 22, 333)]
    tokenizer: Any = train_tokenizer("bpe", 261, [">1"])
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(tokenizer))).train()
    held = Held(tokenizer, rows)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = held.measure(model)
    # All tokens alike: log2(261) bits for each of 1 + 2 + 3 bytes and three ends; none is told from the first.
    assert found["bits"] == pytest.approx(9 * math.log2(261) / 6) and found["solved"] == 0.0
    assert model.training
    models, seen = [Told(rows[:2], tokenizer), Told(rows, tokenizer)], []
    curve = Curve(held, lambda: models[len(seen) - 1], 10, 2)
    for step in range(11):
        seen = [1] if step < 10 else [1, 2]
        curve.take(step, 7.0 * step)
    assert [(point["step"], point["tokens"]) for point in curve.found] == [(0, 0.0), (5, 35.0), (10, 70.0)]
    assert [point["solved"] for point in curve.found] == pytest.approx([2 / 3, 2 / 3, 1.0])


SEVERAL = [
    {"prompt": "# 1 2 4", "answer": "2 4 1", "also": "4 2 1"},
    {"prompt": "# 3 6 5", "answer": "6 3 5", "also": "6 5 3"},
    {"prompt": "# 8 7", "answer": "8 7", "also": ""},
]
SAID = ["2 4 1", "6 5 3", "7 8"]
"""The answer that is told, the other right one, and a wrong one."""


def test_any_right_answer_solves_a_problem_and_bits_are_of_the_one_that_is_told() -> None:
    assert [right_answers(row) for row in SEVERAL] == [["2 4 1", "4 2 1"], ["6 3 5", "6 5 3"], ["8 7"]]
    tokenizer: Any = train_tokenizer("bpe", 261, ["1"])
    held = Held(tokenizer, SEVERAL)
    found = held.measure(Told([{**row, "answer": said} for row, said in zip(SEVERAL, SAID, strict=True)], tokenizer))
    assert found["solved"] == pytest.approx(2 / 3)
    # 5 + 5 + 3 bytes and three ends: of the first answer each token has a logit of 1 among 260 zeros, of the others
    # all 261 are alike.
    known = math.log2(260 + math.e) - math.log2(math.e)
    assert found["bits"] == pytest.approx((6 * known + 10 * math.log2(261)) / 13)


def test_any_right_answer_that_is_written_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(SETTINGS["several"], held_out=3)
    layout, model = Layout(tmp_path, setting), tmp_path / "model"
    write_rows(layout.rows, SEVERAL)
    tokenizer: Any = train_tokenizer("bpe", 261, ["1"])
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(tokenizer))).save_pretrained(model)
    tokenizer.save_pretrained(model)
    monkeypatch.setattr("lab_cell.answers", lambda *_arguments: SAID)
    assert measured(layout, model)["right"] == [1, 1, 0]


def test_nobody_is_told_of_other_right_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"# {number}", "answer": "2 4 1", "also": "4 2 1"} for number in range(100)]
    layout = Layout(tmp_path, replace(SETTINGS["several"], gold=5, prompts=10, held_out=10, teacher_examples=20))
    write_rows(layout.rows, rows)
    assert layout.held_out() == rows[:10]
    told = [{"prompt": row["prompt"], "answer": "2 4 1"} for row in rows]
    assert layout.gold(1) == told[25:30] and layout.taught() == told[-20:]


class Told(torch.nn.Module):
    """Knows some answers by heart: its most likely next token is theirs."""

    def __init__(self, rows: list[dict[str, str]], tokenizer: Any) -> None:
        super().__init__()
        self.known = [[*prompt_ids(tokenizer, row), *answer_ids(tokenizer, row)] for row in rows]
        self.size = len(tokenizer)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = torch.zeros(*input_ids.shape, self.size)
        for row, ids in enumerate(input_ids.tolist()):
            for known in self.known:
                if ids[: len(known)] == known:
                    logits[row, range(len(known) - 1), known[1:]] = 1.0
        return type("Output", (), {"logits": logits})


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [learning_rate_share(step, 400) for step in range(400)]
    assert shares[0] == pytest.approx(1 / 50) and shares[50] == 1.0 and max(shares) == 1.0
    # Half way down, between 1 and 0.05.
    assert shares[225] == pytest.approx(0.525)
    assert shares[399] == pytest.approx(0.05, abs=1e-3)


# --- tables -----------------------------------------------------------------------------------------------------


def test_differences_are_of_seeds() -> None:
    base, arm = by_seed("1000", "1100", "1110"), by_seed("1100", "1110", "1111")
    found = table.accuracy(arm)
    assert found.value == 75.0 and found.low < 75.0 < found.high
    assert table.differences(arm, base) == [25.0, 25.0, 25.0]
    # 0, 25 and 50 points: standard deviation 25, half an interval 4.303 * 25 / sqrt(3).
    mixed = table.over_seeds(table.differences(by_seed("1000", "1110", "1111"), by_seed("1000", "1100", "1100")))
    assert (mixed.value, mixed.high - mixed.value) == pytest.approx((25.0, 4.303 * 25 / math.sqrt(3)))
    assert mixed.verdict == "no difference shown"
    assert table.over_seeds([24.0, 25.0, 26.0]).verdict == "better"
    assert table.over_seeds([-24.0, -25.0, -26.0]).verdict == "worse"
    assert table.over_seeds([25.0]).low == -math.inf
    with pytest.raises(ValueError, match="no seed in common"):
        table.differences({1: run("1", seed=1)}, by_seed("1"))


def test_what_seeds_can_show() -> None:
    # (4.303 + 1.061) s / sqrt(3), and towards the normal (1.96 + 0.842) s / sqrt(k).
    assert table.detectable(2.0, 3) == pytest.approx(5.364 * 2 / math.sqrt(3))
    assert table.detectable(2.0, 100) == pytest.approx(2.802 * 2 / 10)
    arms = {LABELED: by_seed("1000", "1100", "1110"), "x": by_seed("1100", "1110", "1110")}
    said = "\n".join(table.power("fine", arms))
    deviation = statistics.stdev([25.0, 25.0, 0.0])
    assert (
        f"fine: standard deviation over 3 seeds of {LABELED}, 25.0 points" in said
        and f"median {deviation:.1f} over 1 arms" in said
    )
    assert f"{table.detectable(deviation, 5):.1f} with 5 seeds" in said


def test_tokens_are_those_until_the_baselines_accuracy() -> None:
    base = by_seed("1100", "1100")
    # 100 % at 2M tokens in a line from 0: 50 % after half of them; the other never gets there.
    assert table.token_shares(by_seed("1111", "1000"), base) == pytest.approx([0.5, math.inf])
    assert table._tokens([0.5, math.inf, 0.4]) == "50% (40% to never)"
    assert table._tokens([0.5, math.inf, math.inf]) == "not reached (1 of 3 seeds do)"


def test_the_table_has_a_row_for_every_arm() -> None:
    solved = {BASELINE: 4, LABELED: 5, "0.7 projection": 8, "TRL GOLD": 3}
    records = [run("1" * n + "0" * (10 - n), arm=arm, seed=seed) for arm, n in solved.items() for seed in (0, 1)]
    records += [run("1" * 6 + "0" * 4, arm="0.7 projection", seed=seed, budget=40) for seed in (0, 1)]
    begun = [run("1000000000", arm=START, seed=seed) for seed in (0, 1)]
    text = table.tables(records, begun, {NAME: run("1" * 9 + "0"), "fine": None})
    assert "**coarse, noisy**: 10 gold examples, 30% of them wrong, and 40 prompts without" in text
    assert (
        "the teacher, told 10% wrong answers, solves 90.0 %" in text
        and "begin from 10.0 / 10.0 %; then 5 steps of 8 examples" in text
    )
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "| 80.0 / 80.0 | +30.0 [+30.0, +30.0] | +30.0 / +30.0 | 0.500 | 62% (62% to 62%) |" in rows["0.7 projection"]
    assert rows["0.7 projection"].endswith("| +10.0 [+10.0, +10.0] | 2.00 | 0.25 | 7 | better |")
    assert rows[LABELED].endswith("| 50.0 / 50.0 |  |  | 0.500 |  |  | 2.00 | 0.25 | 7 |  |")
    assert "- Best of ours: 0.7 projection, +30.0 [+30.0, +30.0] points (better)" in text
    assert "- Best of GOLD's: TRL GOLD, -20.0 [-20.0, -20.0] points (worse)" in text
    assert "fine" not in text


def test_the_chart_is_drawn_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    chart = importlib.import_module("rollout_chart")
    records = [
        run("1" * n + "0" * (10 - n), arm=arm, seed=n) for arm in (BASELINE, "rollouts, reverse") for n in (3, 4)
    ]
    text = table.tables(records, [], {NAME: run("1" * 9 + "0")})
    picture = chart.rollouts({"lab --folder x": text, "lab --quick": "", "on_policy_cost": ""})
    # Two arms of two seeds: 30 and 40 %; the teacher at 90 %.
    assert picture.count("<circle") == 4 and picture.count('cx="350.0"') == picture.count('cx="380.0"') == 2
    assert "M530.0 52.0" in picture and ">coarse, noisy<" in picture
