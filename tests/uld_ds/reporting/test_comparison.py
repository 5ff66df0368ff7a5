"""Runs side by side: what is read from their folders, what is marked as best, what a reader is warned of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.helpers.run_folders import add_rounds, make_run
from uld_ds.reporting.charts import Axis, Series, line_chart
from uld_ds.reporting.comparison import BITS, ComparedRun, best_of, cautions, markdown, rows_of
from uld_ds.reporting.comparison_html import comparison_page


def test_what_a_run_folder_says(tmp_path: Path) -> None:
    found = ComparedRun.of(make_run(tmp_path, "a", f1=(40.0, 35.0, 45.0)))
    assert (found.name, found.state, found.steps, found.student_tokens) == ("a", "finished", 4, 400)
    objective = "1 ce + 0.3 uld, segments"
    assert (found.teacher, found.student, found.objective) == ("org/large", "a new llama", objective)
    assert (found.wall_seconds, found.bits_before, found.bits_teacher) == (61.4, 4.0, 1.2)
    assert found.curve == [(0.0, 4.0), (200.0, 3.0), (400.0, 2.5)]
    assert found.scores[BITS].value == 2.51
    assert (found.scores["f1"].value, found.scores["f1"].low, found.scores["f1"].high) == (40.0, 35.0, 45.0)


def test_objectives_that_differ_look_different(tmp_path: Path) -> None:
    def said(name: str, **objective: Any) -> str:
        return ComparedRun.of(make_run(tmp_path, name, objective={"ce": 0.7, "projection": 0.3} | objective)).objective

    plain = "0.7 ce + 0.3 projection, segments"
    defaults = {"projection_divergence": "forward_kl", "projection_student_ids": 16, "skip_whitespace_rows": False}
    # A run of an earlier version has the keys that it had.
    assert said("a", **defaults, uld_gate=None, schedule={}, likelihood_run=1, likelihood_boundary=0.0) == plain
    assert said("b", projection_divergence="reverse_kl", skip_whitespace_rows=True) == (
        f"{plain}, projection_divergence reverse_kl, skip_whitespace_rows"
    )
    assert said("c", projection_pick="student", projection_student_ids=8) == (
        f"{plain}, projection_pick student, projection_student_ids 8"
    )
    assert said("d", uld_gate=10) == f"{plain}, uld_gate 10"
    assert said("e", combine="route") == f"{plain}, combine route"


def test_teachers_that_weigh_differently_look_different(tmp_path: Path) -> None:
    def said(name: str, *weights: float) -> str:
        given = zip(weights, ({"name": "a", "model": "org/large"}, {"name": "b", "model": None}), strict=True)
        place = make_run(tmp_path, name, teachers=[teacher | {"weight": weight} for weight, teacher in given])
        return ComparedRun.of(place).teacher

    assert said("x", 0.7, 0.3) == "0.7 org/large, 0.3 b"
    assert said("y", 1.0, 1.0) == "org/large, b"


def test_an_evaluation_alone(tmp_path: Path) -> None:
    make_run(tmp_path, "a", f1=(40.0, 35.0, 45.0))
    beside = tmp_path / "a-evaluation"
    facts = json.loads((beside / "evaluation.json").read_text()) | {"model": "org/base", "held_out": {"path": "x"}}
    (beside / "evaluation.json").write_text(json.dumps(facts))
    found = ComparedRun.of(beside)
    assert (found.held_out, found.scored_on) == ('{"path": "x"}', '{"path": "x"}')
    assert (found.name, found.student, found.teacher, found.steps) == ("a-evaluation", "org/base", "-", None)
    assert found.scores["f1"].value == 40.0
    # The run beside it was measured on rows of its own.
    both = [replace(ComparedRun.of(tmp_path / "a"), scored_on='{"path": "held_out.jsonl"}'), found]
    assert cautions(both)[0] == "the held-out rows differ: the scores do not compare"


def test_an_evaluation_on_other_rows_than_the_run(tmp_path: Path) -> None:
    make_run(tmp_path, "a", f1=(40.0, 35.0, 45.0))
    make_run(tmp_path, "b", f1=(40.0, 35.0, 45.0))
    for name in ("a", "b"):
        file = tmp_path / f"{name}-evaluation" / "evaluation.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"held_out": {"path": "held_out.jsonl", "limit": 9}}))
    said = cautions([ComparedRun.of(tmp_path / name) for name in ("a", "b")])
    assert len(said) == 1
    assert said[0].startswith("evaluated on other rows than the run's own: a, b")


def test_without_an_evaluation_and_token_counts(tmp_path: Path) -> None:
    found = ComparedRun.of(make_run(tmp_path, "a", tokens=None))
    assert found.student_tokens is None
    assert found.scores[BITS].value == 2.5
    assert found.scores[BITS].low is None
    assert found.curve == [(0.0, 4.0), (2.0, 3.0), (4.0, 2.5)]


def test_runs_with_rollouts_beside_one_without(tmp_path: Path) -> None:
    make_run(tmp_path, "own", rollouts={"share": 0.5, "every": 2})
    add_rounds(tmp_path / "own" / "progress.jsonl", 2, every=2)
    runs = [ComparedRun.of(place) for place in (tmp_path / "own", make_run(tmp_path, "given"))]
    assert runs[0].objective.endswith(", segments, 50% own answers every 2 steps")
    assert [run.own_divergence for run in runs] == [0.9, None]
    assert dict(rows_of(runs))["KL(student, teacher) in own answers"] == ["0.9000", "-"]
    assert "KL(student, teacher) in own answers" not in dict(rows_of(runs[1:]))


def test_the_best_and_what_is_not_told_apart_from_it(tmp_path: Path) -> None:
    runs = [
        ComparedRun.of(make_run(tmp_path, "far", bits=3.0, f1=(20.0, 15.0, 25.0))),
        ComparedRun.of(make_run(tmp_path, "near", bits=2.6, f1=(40.0, 35.0, 45.0))),
        ComparedRun.of(make_run(tmp_path, "best", bits=2.5, f1=(44.0, 39.0, 49.0))),
    ]
    assert best_of(runs, BITS) == {1, 2}
    assert best_of(runs, "f1") == {1, 2}
    assert best_of(runs[:1], "f1") == set()
    texts = dict(rows_of(runs))
    assert texts["**f1**"] == ["20.00 [15.00, 25.00]", "40.00 [35.00, 45.00] *", "44.00 [39.00, 49.00] *"]
    assert texts["student tokens"] == ["400"] * 3


def test_values_without_intervals_have_one_best(tmp_path: Path) -> None:
    runs = [ComparedRun.of(make_run(tmp_path, name, bits=bits)) for name, bits in (("a", 2.5), ("b", 2.4))]
    assert best_of(runs, BITS) == {1}


def test_cautions(tmp_path: Path) -> None:
    one = ComparedRun.of(make_run(tmp_path, "one"))
    same = ComparedRun.of(make_run(tmp_path, "same"))
    other = ComparedRun.of(
        make_run(tmp_path, "other", finished=False, teacher={"path": "store"}, data={"eval": {"path": "else.jsonl"}})
    )
    assert cautions([one, same]) == []
    said = " ".join(cautions([one, other]))
    assert "held-out rows differ" in said
    assert "different teachers" in said
    assert "not finished: other" in said


def test_answers_that_were_read_in_two_ways(tmp_path: Path) -> None:
    runs = [ComparedRun.of(make_run(tmp_path, name, f1=(40.0, 35.0, 45.0))) for name in ("a", "b")]
    assert [run.words for run in runs] == ["published"] * 2  # what evaluations are that do not say it
    file = tmp_path / "b-evaluation" / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"words": "unicode"}))
    runs[1] = ComparedRun.of(tmp_path / "b")
    said = ["answers were read in two ways (evaluation.words): scores of words do not compare"]
    assert cautions(runs) == said
    assert cautions([runs[1], ComparedRun.of(make_run(tmp_path, "unscored"))]) == []


def test_markdown_is_a_table(tmp_path: Path) -> None:
    runs = [ComparedRun.of(make_run(tmp_path, name)) for name in ("a|b", "c")]
    lines = markdown(runs).splitlines()
    assert lines[0] == "|  | a\\|b | c |"
    assert lines[1] == "|---|---|---|"
    assert "| **bits per byte** | 2.5000 * | 2.5000 * |" in lines


def test_the_page_is_well_formed_and_escapes(tmp_path: Path) -> None:
    names = ["<b>&", "two", "three", "four", "five"]
    runs = [
        ComparedRun.of(make_run(tmp_path, name, bits=2 + n / 10, f1=(40.0, 35.0, 45.0))) for n, name in enumerate(names)
    ]
    page = comparison_page(runs)
    assert "<b>&" not in page.replace("<b>&lt;", "")
    for svg in page.split("<svg ")[1:]:
        ElementTree.fromstring("<svg " + svg.split("</svg>")[0] + "</svg>")
    assert page.count("<figure>") == 3
    assert "http" not in page


def test_the_fifth_line_differs_from_the_first() -> None:
    points = [(0.0, 1.0), (1.0, 2.0)]
    chart = line_chart("t", Axis("x"), Axis("y"), [Series(str(n), points, n, markers=False) for n in range(16)])
    lines = [part.split(" d=")[0] for part in chart.split('<path class="line ')[1:17]]
    assert len(set(lines)) == 16
