"""Verdicts on made-up runs: certain only where the seeds allow it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import quality_table as table
from quality_setup import ARMS, BASELINE, FULL, STUDENTS, Cell, recipe_of

LOG2 = math.log(2)


def run(
    bits: float, *, arm: str = "x", seed: int = 0, documents: int = 40, tokens: int = 1000, **cell: Any
) -> dict[str, Any]:
    """A run whose every document of 100 bytes takes so many bits per byte, reached along a straight curve from 4."""
    curve = [{"step": n, "tokens": tokens * n / 4, "bits": 4 + (bits - 4) * n / 4} for n in range(5)]
    return {
        "cell": vars(Cell("scratch", arm, 100, seed, **cell)),
        "nats": [bits * 100 * LOG2] * documents,
        "bytes": [100] * documents,
        "f1": [10.0, 20.0],
        "curve": curve,
        "skipped": 0,
        "parameters": 1_000_000,
        "cpu_seconds": 1.0,
    }


def by_seed(*bits: float, arm: str = "x") -> dict[int, dict[str, Any]]:
    return {seed: run(value, arm=arm, seed=seed) for seed, value in enumerate(bits)}


def test_a_difference_is_that_of_pairs() -> None:
    found = table.against(by_seed(2.0, 2.1, 2.2), by_seed(2.1, 2.2, 2.3))
    assert found.difference == pytest.approx(-0.1)
    assert (found.low, found.high) == pytest.approx((-0.1, -0.1))
    assert found.verdict == "better"
    assert table.against(by_seed(2.3, 2.2), by_seed(2.1, 2.0)).verdict == "worse"


def test_a_t_interval_decides() -> None:
    baseline = by_seed(2.0, 2.0, 2.0)
    # Mean -0.03, standard deviation 0.02: half an interval is 4.303 * 0.02 / sqrt(3) = 0.0497.
    found = table.against(by_seed(1.99, 1.97, 1.95), baseline)
    assert (found.seeds_low, found.seeds_high) == pytest.approx((-0.0797, 0.0197), abs=1e-4)
    assert found.verdict == "better with each of these seeds, not certain of others"
    assert table.against(by_seed(1.99, 1.97, 2.01), baseline).verdict == "no difference shown"


def test_one_seed_shows_nothing() -> None:
    found = table.against(by_seed(1.5), by_seed(2.0))
    assert found.seeds_low == -math.inf and found.verdict == "no difference shown"


def test_f1_is_compared_by_prompt_and_seed() -> None:
    better = by_seed(2.0, 2.0)
    for seed, points in ((0, [11.0, 22.0]), (1, [13.0, 24.0])):
        better[seed]["f1"] = points
    # Means of any two seeds and prompts: from 1 (seed 0, first prompt) to 4 (seed 1, second), 2.5 over all.
    assert table.f1_against(better, by_seed(3.0, 3.0)) == "+2.5 [+1.0, +4.0]"
    assert table.f1_against(by_seed(1.0), by_seed(3.0)) == "+0.0 [+0.0, +0.0]"


def test_only_pairs_are_compared() -> None:
    arm = {1: run(2.0, seed=1), 5: run(9.0, seed=5)}
    assert table.against(arm, by_seed(2.5, 2.5, 2.5)).by_seed == pytest.approx((-0.5,))
    with pytest.raises(ValueError, match="no seed in common"):
        table.against({7: run(2.0)}, by_seed(2.0))
    with pytest.raises(ValueError, match="documents differ"):
        table.against({0: run(2.0, documents=3)}, by_seed(2.0))


def test_tokens_until_a_quality_is_reached() -> None:
    curve = run(2.0)["curve"]
    assert table.tokens_to_reach(curve, 3.0) == pytest.approx(500)
    assert table.tokens_to_reach(curve, 3.25) == pytest.approx(375)
    assert table.tokens_to_reach(curve, 4.5) == 0
    assert table.tokens_to_reach(curve, 1.9) is None
    assert table.share_of_tokens(by_seed(2.0, 2.0, 2.0), by_seed(2.0, 3.0, 3.5)) == "50%"
    assert table.share_of_tokens(by_seed(3.0, 3.0, 2.0), by_seed(2.5, 2.5, 2.5)) == "not reached (1 of 3 seeds do)"


def test_the_table_says_what_came_out() -> None:
    records = [run(value, arm=arm, seed=seed) for arm, values in {BASELINE: (2.0, 2.1), "worse": (2.3, 2.4)}.items()
               for seed, value in enumerate(values)]  # fmt: skip
    text = table.tables(records, [BASELINE, "worse", "absent"], BASELINE)
    assert "**scratch** (1.0M parameters), given answers, 100 % of the data, 1,000 tokens" in text
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "2.050 (2.000 to 2.100)" in rows[BASELINE] and "100%" in rows[BASELINE]
    assert rows["worse"].endswith("| worse |") and "+0.300 [+0.300, +0.300]" in rows["worse"]
    assert "not reached (0 of 2 seeds do)" in rows["worse"] and "15.0" in rows["worse"]
    assert "absent" not in text


def test_fewer_steps_stand_beside_all_of_the_baselines() -> None:
    records = [run(2.0, arm=BASELINE), run(2.2, arm="x"), run(1.9, arm="x", budget=60), run(3.0, arm="x", budget=30)]
    head, row = (
        line for line in table.tables(records, [BASELINE, "x"], BASELINE).splitlines() if line[:5] in ("| arm", "| x |")
    )
    assert head.split(" | ")[5:7] == [f"{n} % of the steps, against all of ce's" for n in (60, 30)]
    assert [cell.split()[0] for cell in row.split(" | ")[5:7]] == ["-0.100", "+1.000"]


def test_answers_of_the_teacher_have_tables_of_their_own() -> None:
    text = table.tables([run(2.0, arm=BASELINE), run(1.0, arm=BASELINE, answers="teacher")], [BASELINE], BASELINE)
    assert text.index("given answers") < text.index("the teacher's answers") and text.count("| arm |") == 2


@pytest.mark.parametrize("student", sorted(STUDENTS))
def test_every_arm_is_a_recipe(student: str, tmp_path: Any) -> None:
    assert next(iter(ARMS)) == BASELINE
    for arm in ARMS:
        recipe = recipe_of(tmp_path, FULL, Cell(student, arm, 25, 3))
        terms = {"ce": 0.0, "uld": 0.0, "likelihood": 0.0} | ARMS[arm]
        said = recipe.objective.model_dump(mode="json")
        assert {name: said[name] for name in terms} == terms
        assert recipe.data.train.limit == FULL.examples // 4
        assert (recipe.run.seed, recipe.training.steps) == (3, FULL.steps[student])


def test_a_share_of_the_steps_is_trained_on_the_teachers_answers(tmp_path: Any) -> None:
    cell = Cell("scratch", BASELINE, 50, 1, budget=60, answers="teacher")
    recipe = recipe_of(tmp_path, FULL, cell)
    assert recipe.training.steps == 86 and recipe.data.columns.answer == "teacher_answer"
    assert recipe.data.train.source == "files" and recipe.data.train.limit == FULL.examples // 2
    assert cell.name == "scratch_ce_50_1_of-60_teacher-answers"
