"""Pictures of a run's metrics: which there are, and that values are where they belong."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from uld_ds.reporting.charts import ALONE
from uld_ds.reporting.plots import History, plots
from uld_ds.reporting.stack_picture import stack_picture
from uld_ds.runs.phases import PHASES

SVG = "{http://www.w3.org/2000/svg}"
BOTTOM, TOP = ALONE.height - ALONE.bottom, ALONE.top

LOSSES: History = {"train/loss": [(1, 3.0), (2, 1.0), (3, 2.0)], "train/ce": [(1, 2.0), (2, 1.0), (3, 1.5)]}
BITS: History = {"eval/bits_per_byte": [(0, 4.0), (3, 2.0)], "eval/teacher_bits_per_byte": [(0, 1.0)]}
SECONDS: History = {
    **{f"seconds/{phase}": [(step, 1.0) for step in (1, 2)] for phase in PHASES},
    "seconds/data": [(1, 1.0), (2, 2.0)],
    "seconds/total": [(1, 10.0), (2, 10.0)],
}


def texts(picture: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def areas(picture: str) -> dict[str, str]:
    """Outlines of what is plotted, by their class."""
    plotted = ElementTree.fromstring(picture).findall(f"{SVG}path")
    return {e.attrib["class"]: e.attrib["d"] for e in plotted if e.attrib["class"].startswith("area")}


def levels(outline: str) -> list[float]:
    """The share of the height that each column reaches."""
    tops = [float(y) for y in re.findall(r"V([\d.]+)H", outline)]
    return [(BOTTOM - y) / (BOTTOM - TOP) for y in tops]


def test_there_is_a_picture_of_what_was_measured() -> None:
    assert [name for name, _ in plots({**LOSSES, **BITS, **SECONDS})] == ["loss.svg", "bits_per_byte.svg", "phases.svg"]
    assert [name for name, _ in plots(LOSSES)] == ["loss.svg"]
    assert list(plots({})) == []
    assert list(plots({"seconds/total": [(1, 10.0)]})) == []


def test_own_answers_have_a_picture() -> None:
    nats = {"student_nats_per_byte": [(0, 0.5), (25, 0.5)], "teacher_nats_per_byte": [(25, 1.0)]}
    ((name, picture),) = plots({f"rollouts/{key}": points for key, points in nats.items()})
    assert name == "own_answers.svg"
    assert {"student, when it sampled them", "teacher"} < set(texts(picture))
    assert "KL(student, teacher)" not in texts(picture)  # nothing was judged


def test_pictures_load_nothing_and_are_the_same_bytes_each_time() -> None:
    first, again = (dict(plots({**LOSSES, **BITS, **SECONDS})) for _ in range(2))
    assert first == again
    for picture in first.values():
        ElementTree.fromstring(picture)
        assert not re.search(r"<script|href|url\(|@import", picture)
        assert "prefers-color-scheme: dark" in picture


def test_a_legend_names_the_terms_that_were_measured() -> None:
    (_, picture), *_ = plots(LOSSES)
    said = texts(picture)
    assert said[0] == "Training loss"
    assert said[-2:] == ["loss", "cross-entropy (nats per token)"]
    described = ElementTree.fromstring(picture).find(f"{SVG}desc")
    assert described is not None
    assert described.text == "loss from 3 to 2; cross-entropy (nats per token) from 2 to 1.5"


def test_the_teacher_is_a_level_over_all_steps() -> None:
    (_, picture), *_ = plots(BITS)
    # Each time the line, and its sample in the legend.
    level, _ = re.findall(
        r'<path class="line s1" stroke-dasharray="7 4" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', picture
    )
    held_out, _ = re.findall(r'<path class="line s0" d="M([\d.]+) [\d.]+L([\d.]+) [\d.]+"', picture)
    assert (level[0], level[2]) == held_out
    assert level[1] == level[3]


def test_shares_lie_above_each_other_and_reach_the_top() -> None:
    found = areas(dict(plots(SECONDS))["phases.svg"])
    assert list(found) == [f"area a{place}" for place in reversed(range(len(PHASES) + 1))]
    assert levels(found["area a0"]) == pytest.approx([0.1, 0.2], abs=1e-3)
    assert levels(found["area a1"]) == pytest.approx([0.2, 0.3], abs=1e-3)
    assert levels(found["area a6"]) == pytest.approx([0.7, 0.8], abs=1e-3)
    assert levels(found["area a7"]) == [1.0, 1.0]


def test_the_legend_of_shares_is_in_their_order() -> None:
    said = texts(dict(plots(SECONDS))["phases.svg"])
    assert said[-len(PHASES) - 1 :] == ["other", *reversed(PHASES)]


def test_one_step_has_a_column() -> None:
    outline = areas(stack_picture("t", "%", [7], {"a": [100.0]}))["area a0"]
    assert outline == f"M{ALONE.left} {BOTTOM}V{TOP}H{ALONE.width - ALONE.right}V{BOTTOM}Z"


def test_many_steps_become_means() -> None:
    steps = range(1, 1001)
    shares = {"a": [float(step % 2) for step in steps], "b": [100 - float(step % 2) for step in steps]}
    found = areas(stack_picture("t", "%", steps, shares))
    assert len(levels(found["area a0"])) == 200
    # Means of five steps: three of 1 % or two.
    assert levels(found["area a0"])[:2] == pytest.approx([0.006, 0.004], abs=3e-4)
