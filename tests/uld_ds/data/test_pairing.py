"""Two tokenizations of one answer become one example: its segments, and where it is cut when it is too long."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld_ds.data.encoding import EncodedSide
from uld_ds.data.pairing import Alignment, PairRow, pair


def side(*ends: int, prompt: int = 2, tail: int = 1) -> EncodedSide:
    """Answer tokens that end at the given bytes, after ``prompt`` tokens and before ``tail`` that end the turn."""
    spans = np.array(list(pairwise((0, *ends))), dtype=np.int64).reshape(-1, 2)
    total = prompt + len(ends) + tail
    return EncodedSide(np.arange(100, 100 + total, dtype=np.int32), prompt, prompt + len(ends), spans)


def paired(student: EncodedSide, teacher: EncodedSide, *limits: int, alignment: Alignment = "segments") -> PairRow:
    student_max, teacher_max = limits or (999, 999)
    return pair(student, teacher, alignment=alignment, student_max=student_max, teacher_max=teacher_max)


def segments(row: PairRow) -> list[tuple[int, int]]:
    return list(zip(row["student_segments"].tolist(), row["teacher_segments"].tolist(), strict=True))


def test_segments_begin_where_both_sides_have_a_token_and_the_end_is_the_last() -> None:
    # bytes:   student |0-2|2-3|3-6|6-7|, teacher |0-1|1-3|3-4|4-6|6-7|: shared boundaries 0, 3, 6, and the end.
    row = paired(side(2, 3, 6, 7), side(1, 3, 4, 6, 7, prompt=5))
    assert segments(row) == [(2, 5), (4, 7), (5, 9), (6, 10)]
    assert (row["student_first"], row["student_stop"], row["student_length"]) == (2, 6, 7)
    assert (row["teacher_first"], row["teacher_stop"], row["teacher_length"]) == (5, 10, 11)
    assert row["answer_bytes"] == 7


@pytest.mark.parametrize(("student_tail", "teacher_tail"), [(0, 1), (1, 0), (0, 0)])
def test_no_last_segment_when_a_side_does_not_end_its_turn(student_tail: int, teacher_tail: int) -> None:
    row = paired(side(2, 4, tail=student_tail), side(2, 4, tail=teacher_tail))
    assert segments(row) == [(2, 2), (3, 3)]


def test_several_tokens_that_end_a_turn_give_one_segment() -> None:
    assert segments(paired(side(2, tail=3), side(2, tail=2))) == [(2, 2), (3, 3)]


def test_positional_pairs_the_nth_with_the_nth_and_the_ends() -> None:
    row = paired(side(2, 3, 7), side(1, 3, 4, 6, 7), alignment="positional")
    assert segments(row) == [(2, 2), (3, 3), (4, 4), (5, 7)]
    assert segments(paired(side(7), side(1, 7), alignment="positional")) == [(2, 2), (3, 4)]


def test_an_answer_that_fits_exactly_is_whole() -> None:
    row = paired(side(2, 4), side(4), 5, 4)
    assert (row["student_length"], row["teacher_length"], row["answer_bytes"]) == (5, 4, 4)
    assert segments(row) == [(2, 2), (4, 3)]


def test_without_room_for_the_end_of_the_turn_both_sides_lose_it() -> None:
    row = paired(side(2, 4), side(4), 4, 99)
    assert (row["student_length"], row["teacher_length"], row["answer_bytes"]) == (4, 3, 4)
    assert segments(row) == [(2, 2)]


def test_a_long_answer_is_cut_at_the_last_boundary_that_both_share() -> None:
    # Room for 3 student tokens (bytes 0-5), but only 0-4 is shared.
    row = paired(side(2, 4, 5, 8), side(1, 4, 7, 8), 5, 99)
    assert (row["student_stop"], row["student_length"]) == (4, 4)
    assert (row["teacher_stop"], row["teacher_length"]) == (4, 4)
    assert row["answer_bytes"] == 4
    assert segments(row) == [(2, 2)]
    row = paired(side(2, 4, 5, 8), side(1, 4, 7, 8), 99, 5, alignment="positional")
    assert (row["student_length"], row["teacher_length"], segments(row)) == (4, 4, [(2, 2), (3, 3)])


def test_nothing_that_fits_and_nothing_to_fit() -> None:
    expected = (
        r"^nothing of the answer fits: the prompt takes 2 of 3 student tokens, 2 of 99 teacher tokens \(max_length\)$"
    )
    with pytest.raises(ValueError, match=expected):
        paired(side(2, 4), side(3, 4), 3, 99)
    with pytest.raises(ValueError, match=r"^the answer has no tokens$"):
        paired(side(), side(1))


ends = st.sets(st.integers(1, 39), max_size=30).map(lambda inner: (*sorted(inner), 40))
sides = st.builds(
    lambda ends, prompt, tail: side(*ends, prompt=prompt, tail=tail), ends, st.integers(1, 5), st.integers(0, 2)
)


@given(student=sides, teacher=sides, student_max=st.integers(1, 45), teacher_max=st.integers(1, 45))
def test_whatever_the_limits_a_row_is_sound(
    student: EncodedSide, teacher: EncodedSide, student_max: int, teacher_max: int
) -> None:
    student_ends, teacher_ends = (
        {int(end): i + 1 for i, end in enumerate(each.spans[:, 1])} for each in (student, teacher)
    )
    shared = [0, *sorted(student_ends.keys() & teacher_ends.keys())]
    fitting = [
        end
        for end in shared[1:]
        if student.first + student_ends[end] <= student_max and teacher.first + teacher_ends[end] <= teacher_max
    ]
    if not fitting:
        with pytest.raises(ValueError, match="nothing of the answer fits"):
            paired(student, teacher, student_max, teacher_max)
        return
    row = paired(student, teacher, student_max, teacher_max)
    assert row["student_length"] == len(row["student_ids"]) <= student_max
    assert row["teacher_length"] == len(row["teacher_ids"]) <= teacher_max
    # Cut at the last shared boundary that fits, never elsewhere.
    assert row["answer_bytes"] == fitting[-1]
    assert row["student_stop"] - row["student_first"] == student_ends[fitting[-1]]
    assert row["teacher_stop"] - row["teacher_first"] == teacher_ends[fitting[-1]]
    # Whole, with its end of turn, whenever that fits on both sides; else neither has an end of turn.
    whole = len(student.ids) <= student_max and len(teacher.ids) <= teacher_max
    assert row["student_length"] - row["student_stop"] == (len(student.ids) - student.stop if whole else 0)
    assert row["teacher_length"] - row["teacher_stop"] == (len(teacher.ids) - teacher.stop if whole else 0)
    # Every shared boundary before the cut begins a segment, and the cut itself when both sides go on there.
    starts = [end for end in shared if end < fitting[-1]]
    expected = [(student.first + student_ends.get(b, 0), teacher.first + teacher_ends.get(b, 0)) for b in starts]
    if whole and len(student.ids) > student.stop and len(teacher.ids) > teacher.stop:
        expected.append((student.stop, teacher.stop))
    assert segments(row) == expected
