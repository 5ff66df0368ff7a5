"""Two tokenizations of one answer become one example: its segments, and where it is cut when it is too long."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.turns import text_turn
from uld_ds.data.encoding import EncodedSide
from uld_ds.data.pairing import Alignment, PairRow, pair


def side(*ends: int, prompt: int = 2, tail: int = 1) -> EncodedSide:
    """Answer tokens that end at the given bytes, after ``prompt`` tokens and before ``tail`` that end the turn."""
    spans = np.array(list(pairwise((0, *ends))), dtype=np.int64).reshape(-1, 2)
    total = prompt + len(ends) + tail
    turn = text_turn(prompt, prompt + len(ends), total, spans)
    return EncodedSide(np.arange(100, 100 + total, dtype=np.int32), (turn,))


def paired(student: EncodedSide, teacher: EncodedSide, *limits: int, alignment: Alignment = "segments") -> PairRow:
    student_max, teacher_max = limits or (999, 999)
    return pair(student, teacher, alignment=alignment, student_max=student_max, teacher_max=teacher_max)


def segments(row: PairRow) -> list[tuple[int, int]]:
    """The token of each side that each segment begins with."""
    student = row["student_answers"][row["student_segments"]].tolist()
    teacher = row["teacher_answers"][row["teacher_segments"]].tolist()
    return list(zip(student, teacher, strict=True))


def runs(row: PairRow, side: str) -> list[tuple[int, int]]:
    """Half-open ranges of answer tokens, one per segment."""
    return list(zip(row[f"{side}_segments"].tolist(), row[f"{side}_segment_stops"].tolist(), strict=True))  # type: ignore[literal-required]


def first(row: PairRow, side: str) -> int:
    return int(row[f"{side}_answers"][0])  # type: ignore[literal-required]


def stop(row: PairRow, side: str) -> int:
    """After the last token that spells the answer."""
    return int(row[f"{side}_answers"][row[f"{side}_in_text"]][-1]) + 1  # type: ignore[literal-required]


def test_segments_begin_where_both_sides_have_a_token_and_the_end_is_the_last() -> None:
    # bytes:   student |0-2|2-3|3-6|6-7|, teacher |0-1|1-3|3-4|4-6|6-7|: shared boundaries 0, 3, 6, and the end.
    row = paired(side(2, 3, 6, 7), side(1, 3, 4, 6, 7, prompt=5))
    assert segments(row) == [(2, 5), (4, 7), (5, 9), (6, 10)]
    assert (first(row, "student"), stop(row, "student"), row["student_length"]) == (2, 6, 7)
    assert (first(row, "teacher"), stop(row, "teacher"), row["teacher_length"]) == (5, 10, 11)
    assert row["answer_bytes"] == 7


@pytest.mark.parametrize(("student_tail", "teacher_tail"), [(0, 1), (1, 0), (0, 0)])
def test_no_last_segment_when_a_side_does_not_end_its_turn(student_tail: int, teacher_tail: int) -> None:
    row = paired(side(2, 4, tail=student_tail), side(2, 4, tail=teacher_tail))
    assert segments(row) == [(2, 2), (3, 3)]


def test_several_tokens_that_end_a_turn_give_one_segment() -> None:
    assert segments(paired(side(2, tail=3), side(2, tail=2))) == [(2, 2), (3, 3)]


def test_positional_pairs_the_nth_with_the_nth() -> None:
    # The shorter side's end is a token like any other, and the longer side is cut there.
    row = paired(side(2, 3, 7), side(1, 3, 4, 6, 7), alignment="positional")
    assert segments(row) == [(2, 2), (3, 3), (4, 4), (5, 5)]
    assert segments(paired(side(7), side(1, 7), alignment="positional")) == [(2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"), [(True, False, 3), (False, True, 4), (True, True, 3), (False, False, 4)]
)
def test_positional_without_the_end_of_either_side(student: bool, teacher: bool, pairs: int) -> None:
    # Three tokens and an end against five and an end: without the student's end three are left.
    for turned in (False, True):
        sides = [side(2, 3, 7), side(1, 3, 4, 6, 7)]
        skip = (student, teacher)
        row = pair(
            *(sides[::-1] if turned else sides),
            alignment="positional",
            student_max=99,
            teacher_max=99,
            skip_ends=skip[::-1] if turned else skip,
        )
        assert segments(row) == [(n, n) for n in range(2, 2 + pairs)]
        # Cross-entropy still sees every end.
        assert not row["student_in_text"][-1] and not row["teacher_in_text"][-1]


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
    assert (stop(row, "student"), row["student_length"]) == (4, 4)
    assert (stop(row, "teacher"), row["teacher_length"]) == (4, 4)
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


def test_runs_hold_all_tokens_of_a_segment() -> None:
    row = paired(side(2, 3, 6, 7, tail=2), side(1, 3, 4, 6, 7, prompt=5))
    assert runs(row, "student") == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert runs(row, "teacher") == [(0, 2), (2, 4), (4, 5), (5, 6)]
    # Positional pairs are single tokens, whatever is left over.
    row = paired(side(2, 3, 7), side(1, 3, 4, 6, 7), alignment="positional")
    assert runs(row, "student") == runs(row, "teacher") == [(0, 1), (1, 2), (2, 3), (3, 4)]


def turns(*parts: tuple[tuple[int, ...], int], gap: int = 3) -> EncodedSide:
    """Answers that end at given bytes, with so many tokens that end each turn, ``gap`` other tokens before each."""
    position, encoded = 0, []
    for ends, tail in parts:
        first = position + gap
        position = first + len(ends) + tail
        spans = np.array(list(pairwise((0, *ends))), dtype=np.int64).reshape(-1, 2)
        encoded.append(text_turn(first, first + len(ends), position, spans))
    return EncodedSide(np.arange(position, dtype=np.int32), tuple(encoded))


def test_several_turns_follow_each_other() -> None:
    student, teacher = turns(((2, 4), 1), ((1, 3), 1)), turns(((4,), 2), ((1, 2, 3), 0), gap=2)
    row = paired(student, teacher)
    assert row["student_answers"].tolist() == [3, 4, 5, 9, 10, 11]
    assert row["student_in_text"].tolist() == [True, True, False, True, True, False]
    assert row["teacher_answers"].tolist() == [2, 3, 4, 7, 8, 9]
    assert row["teacher_in_text"].tolist() == [True, False, False, True, True, True]
    # The first turn's end is a segment; of the last turn only the student has one.
    assert runs(row, "student") == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert runs(row, "teacher") == [(0, 1), (1, 3), (3, 4), (4, 6)]
    assert (row["student_length"], row["teacher_length"], row["answer_bytes"]) == (12, 10, 7)


def test_what_does_not_fit_goes_turn_by_turn() -> None:
    student, teacher = turns(((2, 4), 1), ((1, 3), 1)), turns(((2, 4), 1), ((1, 3), 1))
    whole = paired(student, teacher)
    assert (whole["student_length"], whole["answer_bytes"], len(whole["student_segments"])) == (12, 7, 6)
    # One token less: the end of the last turn is lost; then its tokens; then the turn; then the first's end.
    lengths = {11: (11, 7, 5), 10: (10, 5, 4), 9: (6, 4, 3), 6: (6, 4, 3), 5: (5, 4, 2), 4: (4, 2, 1)}
    for limit, expected in lengths.items():
        row = paired(student, teacher, limit, 99)
        assert (row["student_length"], row["answer_bytes"], len(row["student_segments"])) == expected
        row = paired(student, teacher, 99, limit)
        assert (row["teacher_length"], row["answer_bytes"], len(row["teacher_segments"])) == expected
    with pytest.raises(ValueError, match="nothing of the answer fits"):
        paired(student, teacher, 3, 99)


ends = st.sets(st.integers(1, 39), max_size=30).map(lambda inner: (*sorted(inner), 40))
sides = st.builds(
    lambda ends, prompt, tail: side(*ends, prompt=prompt, tail=tail), ends, st.integers(1, 5), st.integers(0, 2)
)


@given(student=sides, teacher=sides, student_max=st.integers(1, 45), teacher_max=st.integers(1, 45))
def test_whatever_the_limits_a_row_is_sound(
    student: EncodedSide, teacher: EncodedSide, student_max: int, teacher_max: int
) -> None:
    student_ends, teacher_ends = (
        {int(end): i + 1 for i, end in enumerate(each.turns[0].parts[0].spans[:, 1])} for each in (student, teacher)
    )
    shared = [0, *sorted(student_ends.keys() & teacher_ends.keys())]
    fitting = [
        end
        for end in shared[1:]
        if student.turns[0].parts[0].first + student_ends[end] <= student_max
        and teacher.turns[0].parts[0].first + teacher_ends[end] <= teacher_max
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
    assert stop(row, "student") - first(row, "student") == student_ends[fitting[-1]]
    assert stop(row, "teacher") - first(row, "teacher") == teacher_ends[fitting[-1]]
    # Whole, with its end of turn, whenever that fits on both sides; else neither has an end of turn.
    whole = len(student.ids) <= student_max and len(teacher.ids) <= teacher_max
    assert row["student_length"] - stop(row, "student") == (
        len(student.ids) - student.turns[0].parts[0].stop if whole else 0
    )
    assert row["teacher_length"] - stop(row, "teacher") == (
        len(teacher.ids) - teacher.turns[0].parts[0].stop if whole else 0
    )
    # Every shared boundary before the cut begins a segment, and the cut itself when both sides go on there.
    starts = [end for end in shared if end < fitting[-1]]
    for name in ("student", "teacher"):
        ranges = runs(row, name)
        # Segments follow each other without a gap and hold every token, but those that end a turn on one side only.
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
        num_held = ranges[-1][1]
        assert not row[f"{name}_in_text"][num_held:].any()  # type: ignore[literal-required]
    expected = [
        (
            student.turns[0].parts[0].first + student_ends.get(b, 0),
            teacher.turns[0].parts[0].first + teacher_ends.get(b, 0),
        )
        for b in starts
    ]
    if (
        whole
        and len(student.ids) > student.turns[0].parts[0].stop
        and len(teacher.ids) > teacher.turns[0].parts[0].stop
    ):
        expected.append((student.turns[0].parts[0].stop, teacher.turns[0].parts[0].stop))
    assert segments(row) == expected
