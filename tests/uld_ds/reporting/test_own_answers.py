"""The page's section on the student's own answers: what it draws, which rounds it shows, what it warns of."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
import yaml

from tests.helpers.run_folders import add_rounds, finished_run, own_answer, own_round
from uld_ds.reporting.own_answers import own_answers, round_phases, rounds_in_words, spread
from uld_ds.reporting.run_data import RunReport
from uld_ds.reporting.run_html import report_page


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with everything in its folder but rollouts."""
    return finished_run(tmp_path)


def text_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)).split())


def test_a_run_without_rollouts_has_no_section(run: Path) -> None:
    report = RunReport.read(run)
    assert own_answers(report) is None
    assert round_phases(report) is None
    text = text_of(report_page(run))
    assert "own answers" not in text and "KL(student, teacher)" not in text and "A round's seconds" not in text


def test_the_section(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["rollouts"] = {"share": 0.5, "every": 25, "objective": None}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    add_rounds(run / "progress.jsonl", 3, judged=2)
    page = report_page(run)
    text = text_of(page)
    for said in (
        "0.9000 nats per byte, KL(student, teacher) in own answers, 1.0000 in the first round",
        "Own answers 50% of each batch, new ones every 25 steps; loss 0.3 × ULD",
        "The student's own answers",
        "Round 2 step 50: 100 answers, 50% ended, 38 tokens on average, 4% repeated",
        "What is 2 <+> 1? It is 3. student 0.500 teacher 1.000",
        "A round's seconds 3 rounds held training up for 8 s each",
        "sampling 75.0% the student's own answers, token by token",
    ):
        assert said in text, said
    told = re.findall(r'aria-label="([^"]+)"', page)
    assert "KL(student, teacher) in own answers: teacher's nats less the student's from 1 to 0.9" in map(unescape, told)
    assert (
        "Nats per byte of own answers: student, when it sampled them from 0.75 to 0.75; teacher from 1.75 to 1.65"
        in [*map(unescape, told)]
    )
    assert any("answers that the student ended from 50 to 50; different answers from 96 to 96" in line for line in told)
    # The teacher's bar is the longest, the student's half of it.
    assert (
        page.count('<i style="width:50.0%"></i></td></tr>') == page.count('<i style="width:100.0%"></i></td></tr>') == 9
    )


def test_first_and_last_rounds_are_among_those_shown(run: Path) -> None:
    add_rounds(run / "progress.jsonl", 20)
    section = own_answers(RunReport.read(run))
    assert section is not None
    assert [shown.title for shown in section.rounds] == [f"Round {number}" for number in (0, 4, 8, 11, 15, 19)]
    assert section.hidden == 14
    assert "Answers of 14 rounds in between are in the run's folder." in text_of(report_page(run))


@pytest.mark.parametrize(
    ("count", "most", "chosen"),
    [(0, 6, []), (1, 6, [0]), (6, 6, [0, 1, 2, 3, 4, 5]), (7, 6, [0, 1, 2, 4, 5, 6]), (100, 3, [0, 50, 99])],
)
def test_numbers_are_spread(count: int, most: int, chosen: list[int]) -> None:
    assert spread(count, most) == chosen


def test_what_a_student_says_is_escaped_and_cut(run: Path) -> None:
    writer = add_rounds(run / "progress.jsonl", 1)
    mean = own_answer("p" * 500, "<script>" + "x" * 1000, (0.1, 3.0), ended=False)
    nothing = own_answer("q", "", (0.0, 0.0))
    writer.rollout_answers(0, 1, [mean, nothing])
    page = report_page(run)
    assert "<script" not in page
    assert f"&lt;script&gt;{'x' * 792}… <i class" in page and "…" + "p" * 400 + "</p>" in page
    assert "student 0.100 teacher 3.000" in text_of(page)
    assert "q nothing" in text_of(page)


def test_a_collapse_is_told_with_whether_it_lasts(run: Path) -> None:
    writer = add_rounds(run / "progress.jsonl", 2)
    writer.round(own_round(2), every=25, warnings={"ended": "round 2: it does not stop"})
    writer.round(own_round(3), every=25, warnings={"ended": "round 3: it does not stop", "repeated": "round 3: again"})
    section = own_answers(RunReport.read(run))
    assert section is not None
    assert section.warnings == [
        "Round 3: it does not stop. So it was in 2 of 4 rounds, and is in the last one.",
        "Round 3: again. So it was in 1 of 4 rounds, and is in the last one.",
    ]
    writer.round(own_round(4), every=25, warnings={})
    again = own_answers(RunReport.read(run))
    assert again is not None
    assert again.warnings[0] == "Round 3: it does not stop. So it was in 2 of 5 rounds, but not in the last one."


def test_a_round_of_nothing_usable_is_on_the_page_all_the_same(run: Path) -> None:
    writer = add_rounds(run / "progress.jsonl", 0)
    writer.round(own_round(0, usable=0, student_nats_per_byte=float("nan"), seconds={}), every=25, warnings={})
    section = own_answers(RunReport.read(run))
    assert section is not None
    assert (len(section.charts), section.rounds) == (2, [])  # lengths and shares
    assert "Round by round" not in text_of(report_page(run))


def test_the_setting_in_words() -> None:
    assert rounds_in_words({}) == rounds_in_words({"rollouts": None}) == ""
    recipe = {
        "rollouts": {"share": 1.0, "every": 1, "objective": {"projection": 2.0, "ce": 0.0}},
        "objective": {"ce": 1},
    }
    said = rounds_in_words(recipe)
    assert said.startswith("100% of each batch, new ones every 1 steps; loss 2 × ")
    assert "cross-entropy" not in said


def test_secrets_of_answers_stay_where_they_are(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    add_rounds(run / "progress.jsonl", 1).rollout_answers(
        0, 1, [own_answer("planted-secret", "planted-secret", (1, 1))]
    )
    assert "planted-secret" not in report_page(run)
