"""Rows of several teachers: put together from rows of each, and seen as each teacher's alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.helpers.micro_batches import row
from uld_ds.data.batching import Batcher
from uld_ds.data.pairing import FEATURES
from uld_ds.data.several_teachers import NO_COMMON_SEGMENT, OTHER_PARTS, joined
from uld_ds.data.statistics import facts_of
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.data.teacher_views import OF_TEACHER, features_of, judges, view_of

NAMES = ["a", "b"]
# Six tokens of the student's, all of which spell the answer; the teachers cut it otherwise.
ANSWERS = [2, 3, 4, 5, 6, 7]
A = row(1, [8, ANSWERS, 6, [(0, 1), (1, 3), (3, 4), (4, 6)]], [7, [2, 3, 4, 5, 6], 5, [(0, 1), (1, 2), (2, 3), (3, 5)]])
B = row(1, [8, ANSWERS, 6, [(0, 2), (2, 3), (3, 6)]], [6, [3, 4, 5], 3, [(0, 1), (1, 2), (2, 3)]])


def plain(item: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        name: np.asarray(value) if isinstance(value, list) else value for name, value in (item | changes).items()
    } | {
        "notes": [],
        "digest": changes.get("digest", "d"),
    }


def rows_of(*rows: dict[str, Any]) -> Dataset:
    return Dataset.from_dict(
        {name: [item[name] for item in rows] for name in features_of(NAMES)}, features=features_of(NAMES)
    )


def test_a_view_is_what_the_teacher_would_have_had_alone() -> None:
    merged = rows_of(joined({"a": plain(A), "b": plain(B)}, NAMES))
    assert judges(merged) == NAMES
    for name, alone in (("a", A), ("b", B)):
        (seen,) = view_of(merged, name)
        for column in FEATURES:
            if column != "digest":
                assert np.array_equal(seen[column], alone[column]), column
    alone = Dataset.from_list([A], features=FEATURES)
    assert judges(alone) == ["teacher"]
    assert view_of(alone, "teacher") is alone
    assert features_of(["teacher"]) == FEATURES


def test_a_micro_batch_has_the_segments_of_each_and_the_student_once() -> None:
    merged = rows_of(
        joined({"a": plain(A), "b": plain(B)}, NAMES), joined({"b": plain(B)}, NAMES), joined({"a": plain(A)}, NAMES)
    )
    batcher = Batcher(merged, padding=0)
    assert batcher.lengths.tolist() == [8 + 7 + 6, 8 + 6, 8 + 7]
    (batch,) = batcher.window([np.arange(3)])
    of_a, of_b = batch.pairs
    assert of_a.example.tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    assert of_b.example.tolist() == [0, 0, 0, 1, 1, 1]
    # The rows that a teacher does not judge are not among those that its segments are numbered by.
    assert of_a.answers is not None
    assert of_a.answers.tolist() == [*range(6), *range(12, 18)]
    assert of_a.student.compared.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    seen = batch.judged_by(0).student
    assert seen.answer_ids.tolist() == batch.student.answer_ids[of_a.answers].tolist()
    assert seen.answer_example.tolist() == [0] * 6 + [2] * 6
    assert of_b.student.compared.tolist() == [0, 2, 3, 6, 8, 9]
    assert (list(of_a.places(3)), list(of_b.places(3))) == ([0, 2], [0, 1])
    # Teachers are asked about their own examples alone, and the cheapest of these stands in.
    teacher = TeacherBatcher(view_of(merged, "b"), padding=0, max_tokens=99)
    assert (teacher.judged.tolist(), teacher.shortest) == ([0, 1], 0)
    facts = facts_of(merged, 0)
    assert facts.teachers == {
        "a": {"examples": 2, "student_tokens": 12, "teacher_tokens": 10, "segments": 8},
        "b": {"examples": 2, "student_tokens": 12, "teacher_tokens": 6, "segments": 6},
    }
    assert (facts.student_tokens, facts.segments, facts.alignment_rate) == (18, 14, 14 / 24)


def test_a_teacher_that_reads_less_judges_the_beginning() -> None:
    short = row(1, [5, [2, 4], 2, [(0, 1), (1, 2)]], [5, [2, 3], 2, [(0, 1), (1, 2)]])
    merged = joined({"a": plain(A), "b": plain(short)}, NAMES)
    assert merged["student_answers"].tolist() == ANSWERS
    # Token 4 is the student's third answer token: the one between is not the teacher's to judge.
    assert merged["b.student_segments"].tolist() == [0, 2]
    assert merged["b.student_segment_stops"].tolist() == [1, 3]
    other = row(1, [8, [1, 3], 2, [(0, 1), (1, 2)]], [5, [2, 3], 2, [(0, 1), (1, 2)]])
    with pytest.raises(ValueError, match=OTHER_PARTS):
        joined({"a": plain(A), "b": plain(other)}, NAMES)
    # A segment of the tokens 2 and 4 would have the one between them in it, which the teacher did not see.
    apart = row(1, [5, [2, 4], 2, [(0, 2)]], [5, [2, 3], 2, [(0, 2)]])
    with pytest.raises(ValueError, match=OTHER_PARTS):
        joined({"a": plain(A), "b": plain(apart)}, NAMES)
    with pytest.raises(ValueError, match="b: it is too long"):
        joined({"a": plain(A), "b": "it is too long"}, NAMES)


def test_common_segments_end_where_both_teachers_have_a_boundary() -> None:
    merged = joined({"a": plain(A), "b": plain(B)}, NAMES, common=True)
    for name in NAMES:
        # Of a's ends 1, 3, 4, 6 and b's 2, 3, 6 both have 3 and 6.
        assert merged[f"{name}.student_segments"].tolist() == [0, 3]
        assert merged[f"{name}.student_segment_stops"].tolist() == [3, 6]
    assert merged["a.teacher_segments"].tolist() == [0, 2]
    assert merged["a.teacher_segment_stops"].tolist() == [2, 5]
    assert merged["b.teacher_segments"].tolist() == [0, 2]
    assert merged["b.teacher_segment_stops"].tolist() == [2, 3]
    apart = row(1, [8, ANSWERS, 6, [(0, 2), (2, 5)]], [6, [3, 4], 2, [(0, 1), (1, 2)]])
    with pytest.raises(ValueError, match=NO_COMMON_SEGMENT):
        joined({"a": plain(A), "b": plain(apart)}, NAMES, common=True)


def test_a_row_that_is_anothers_to_judge_is_empty_in_every_column() -> None:
    merged = joined({"b": plain(B)}, NAMES)
    assert {name: len(merged[f"a.{name}"]) for name in OF_TEACHER if not name.endswith(("length", "turn"))} == {
        name: 0 for name in OF_TEACHER if not name.endswith(("length", "turn"))
    }
    assert (merged["a.teacher_length"], merged["a.teacher_last_turn"]) == (0, 0)
