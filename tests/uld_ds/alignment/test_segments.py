"""The segments that two tokenizations of one text form."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.span_texts import TEXTS, Spans, check_tiling, random_text, tokenizer_named
from uld_ds.alignment.segments import Segment, align, alignment_rate, segment_boundaries
from uld_ds.tokenization.spans import batch_token_spans, token_spans


def reference_starts(mine: Spans, others: Spans) -> list[int]:
    """Brute force: the tokens whose (start, order among tokens with that start) also occurs on the other side."""

    def keys(spans: Spans) -> list[tuple[int, int]]:
        return [(start, [s for s, _ in spans[:index]].count(start)) for index, (start, _) in enumerate(spans)]

    shared = set(keys(others))
    return [index for index, key in enumerate(keys(mine)) if key in shared]


def check_segments(student: Spans, teacher: Spans) -> None:
    """Everything that is promised about segments."""
    segments = align(student, teacher)
    assert [i for segment in segments for i in segment.student] == list(range(len(student)))
    assert [i for segment in segments for i in segment.teacher] == list(range(len(teacher)))
    for segment in segments:
        own, other = segment.student, segment.teacher
        assert len(own) > 0
        assert len(other) > 0
        assert student[own.start][0] == teacher[other.start][0]
        assert student[own.stop - 1][1] == teacher[other.stop - 1][1]
    assert [segment.student.start for segment in segments] == reference_starts(student, teacher)
    assert [segment.teacher.start for segment in segments] == reference_starts(teacher, student)
    assert align(teacher, student) == [Segment(s.teacher, s.student) for s in segments]


# --- segments -----------------------------------------------------------------------------------------------------


def test_segments_computed_by_hand() -> None:
    student = [(0, 2), (2, 5), (5, 6), (6, 9)]
    teacher = [(0, 1), (1, 2), (2, 6), (6, 8), (8, 9)]
    assert align(student, teacher) == [
        Segment(range(0, 1), range(0, 2)),
        Segment(range(1, 3), range(2, 3)),
        Segment(range(3, 4), range(3, 5)),
    ]
    assert alignment_rate(student, teacher) == 3 / 4
    starts = segment_boundaries(np.array(student), np.array(teacher))
    assert [row.tolist() for row in starts] == [[0, 1, 3], [0, 2, 3]]


def test_zero_width_tokens_belong_to_the_segment_that_follows() -> None:
    student, teacher = [(0, 0), (0, 3), (3, 3), (3, 5), (5, 5)], [(0, 3), (3, 5)]
    assert align(student, teacher) == [
        Segment(range(0, 2), range(0, 1)),
        Segment(range(2, 5), range(1, 2)),
    ]
    check_segments(student, teacher)


def test_zero_width_tokens_of_both_sides_are_paired() -> None:
    student, teacher = [(0, 0), (0, 0), (0, 3)], [(0, 0), (0, 3)]
    assert align(student, teacher) == [
        Segment(range(0, 1), range(0, 1)),
        Segment(range(1, 3), range(1, 2)),
    ]


def test_end_tokens_of_both_sides_are_the_last_segment() -> None:
    student, teacher = [(4, 6), (6, 9), (9, 9)], [(4, 9), (9, 9), (9, 9)]
    assert align(student, teacher) == [
        Segment(range(0, 2), range(0, 1)),
        Segment(range(2, 3), range(1, 3)),
    ]


def test_nothing_aligns_with_nothing() -> None:
    assert align([], []) == []
    assert alignment_rate([], []) == 0.0


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Spans, Spans]:
    base, end = draw(st.integers(0, 5)), draw(st.integers(1, 12))
    sides = []
    for _ in range(2):
        cuts = sorted(draw(st.lists(st.integers(0, end), max_size=14)))
        edges = [base + edge for edge in [0, *cuts, end]]
        sides.append(list(itertools.pairwise(edges)))
    return sides[0], sides[1]


@settings(max_examples=300, deadline=None)
@given(sides=tilings())
def test_segments_of_any_two_tilings(sides: tuple[Spans, Spans]) -> None:
    check_segments(*sides)
    rate = alignment_rate(*sides)
    assert rate == len(reference_starts(*sides)) / len(sides[0])


@settings(max_examples=50, deadline=None)
@given(sides=tilings())
def test_identical_sides_give_one_token_per_segment(sides: tuple[Spans, Spans]) -> None:
    spans = sides[0]
    assert align(spans, spans) == [Segment(range(n, n + 1), range(n, n + 1)) for n in range(len(spans))]
    assert alignment_rate(spans, spans) == 1.0


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ([(0, 3)], [(0, 4)], r"different bytes: student spans \[0, 3\), teacher spans \[0, 4\)"),
        ([(1, 3)], [(0, 3)], r"different bytes: student spans \[1, 3\), teacher spans \[0, 3\)"),
        ([], [(0, 3)], r"student spans nothing, teacher spans \[0, 3\)"),
        ([(0, 2), (1, 3)], [(0, 3)], r"student spans 0 and 1 overlap: \(0, 2\), \(1, 3\)"),
        ([(0, 3)], [(0, 1), (2, 3)], r"teacher spans 0 and 1 leave a hole: \(0, 1\), \(2, 3\)"),
        ([(0, 3)], [(2, 3), (0, 2)], r"teacher spans 0 and 1 are out of order"),
        ([(0, 3), (3, 1)], [(0, 3)], r"student span 1 ends before it begins: \(3, 1\)"),
    ],
)
def test_spans_that_do_not_belong_together(student: Spans, teacher: Spans, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        align(student, teacher)


PAIRS = st.tuples(*[st.sampled_from(list(zoo.ALL))] * 2)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=PAIRS, text=TEXTS)
def test_segments_of_any_two_tokenizers(names: tuple[str, str], text: str) -> None:
    student, teacher = (token_spans(tokenizer_named(name), text) for name in names)
    if student and teacher:
        check_segments(student, teacher)


@pytest.mark.slow
def test_twenty_thousand_random_pairs() -> None:
    rng = random.Random(20_000)
    pairs = list(itertools.combinations_with_replacement(zoo.ALL, 2))
    per_pair = -(-20_000 // len(pairs))
    checked = 0
    for student_name, teacher_name in pairs:
        texts = [random_text(rng) for _ in range(per_pair)]
        sides = [batch_token_spans(tokenizer_named(name), texts)[1] for name in (student_name, teacher_name)]
        for text, *spans in zip(texts, *sides, strict=True):
            student, teacher = ([tuple(pair) for pair in row.tolist()] for row in spans)
            checked += 1
            if student and teacher:
                check_tiling(student, len(text.encode()))
                check_tiling(teacher, len(text.encode()))
                check_segments(student, teacher)
                if student_name == teacher_name:
                    assert len(align(student, teacher)) == len(student)
    assert checked >= 20_000


# --- the module ---------------------------------------------------------------------------------------------------


def test_alignment_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "ray", "deepspeed", "mlflow"]
    code = f"import sys, uld_ds.alignment; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
