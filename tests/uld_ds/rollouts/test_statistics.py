"""What a round's answers are like: against counts by hand, and when somebody is told to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld_ds.generation.sampling import Sampled
from uld_ds.rollouts.statistics import CollapseWatch, collapse_of, repeated_share, student_nats, summary_of
from uld_ds.rollouts.summary import RoundJudgment, RoundSummary, ShownAnswer

PROMPT = [7, 8, 9]


@dataclass(frozen=True)
class Answer:
    sampled: Sampled
    row: dict[str, Any] | None
    problem: str = ""


def sampled(ids: Sequence[int], log_probs: Sequence[float] | None = None, *, ended: bool = True) -> Sampled:
    known = np.array(log_probs if log_probs is not None else [-1.0] * len(ids), np.float32)
    return Sampled(np.array(ids, np.int32), known, ended)


def usable(
    said: Sampled, *, segments: Sequence[tuple[int, int]], num_bytes: int, kept: int | None = None, skipped: int = 0
) -> Answer:
    """A row of so many kept tokens, of which the first skipped ones are no answer; segments are of the answer's."""
    ids = said.ids[:kept].tolist()
    row = {
        "student_ids": [*PROMPT, *ids],
        "student_answers": [len(PROMPT) + place for place in range(skipped, len(ids))],
        "student_segments": [first for first, _ in segments],
        "student_segment_stops": [stop for _, stop in segments],
        "student_last_turn": len(PROMPT) + skipped,
        "answer_bytes": num_bytes,
    }
    return Answer(said, row)


def test_a_round_by_hand() -> None:
    ended = usable(sampled([1, 2, 3, 0], [-1.0, -0.5, -0.25, -0.125]), segments=[(0, 2), (2, 3), (3, 4)], num_bytes=6)
    # Two tokens were cut off with a character that is not whole; what was sampled counts in lengths.
    cut = usable(
        sampled([1, 2, 4, 5, 6], [-2.0, -1.0, -4.0, -8.0, -8.0], ended=False),
        segments=[(0, 1), (1, 3)],
        num_bytes=4,
        kept=3,
    )
    empty = Answer(sampled([0]), None, "empty")
    found = summary_of(3, 75, [ended, cut, empty, empty], [3, 3, 3, 3], {"sampling": 2.0, "weights": 0.5})
    assert found == RoundSummary(
        round=3,
        step=75,
        answers=4,
        usable=2,
        left_out={"empty": 2},
        ended=0.75,
        tokens=(4 + 5 + 1 + 1) / 4,
        bytes=5.0,
        distinct=0.75,
        repeated=0.0,
        student_nats_per_byte=(1.875 + 7.0) / 10,
        seconds={"sampling": 2.0, "weights": 0.5},
        tokens_per_second=5.5,
    )
    assert found.pause == 2.5
    assert replace(found, held_up=1.25).pause == 1.25


def test_only_what_the_teacher_judges_counts() -> None:
    # The first token stands before the answer, the third is an end that the teacher has none for.
    answer = usable(sampled([5, 1, 0], [-8.0, -1.0, -16.0]), segments=[(0, 1)], num_bytes=1, skipped=1)
    assert student_nats(answer, len(PROMPT)) == 1.0


def test_a_row_of_other_tokens_is_noticed() -> None:
    answer = usable(sampled([1, 2]), segments=[(0, 2)], num_bytes=2)
    with pytest.raises(AssertionError, match="as they were sampled"):
        student_nats(Answer(sampled([1, 3]), answer.row), len(PROMPT))


def test_a_round_of_nothing_usable() -> None:
    found = summary_of(0, 0, [Answer(sampled([0]), None, "")], [3])
    assert (found.usable, found.left_out, found.bytes, found.tokens_per_second) == (0, {"not usable": 1}, 0.0, 0.0)
    assert np.isnan(found.student_nats_per_byte)
    assert summary_of(0, 0, [], []).answers == 0
    assert collapse_of(summary_of(0, 0, [], [])) == {}


def test_rare_reasons_are_counted_together() -> None:
    answers = [Answer(sampled([0]), None, f"row {number}") for number in range(12)]
    answers += [Answer(sampled([0]), None, "empty")] * 2
    found = summary_of(0, 0, answers, [3] * 14).left_out
    assert next(iter(found.items())) == ("empty", 2)
    assert (len(found), found["other reasons"], sum(found.values())) == (9, 5, 14)


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], 0.0),
        ([1, 1, 1], 0.0),
        ([1, 1, 1, 1], 0.0),
        ([1, 1, 1, 1, 1], 1 / 2),
        ([1, 2] * 4, 3 / 5),  # 1212 and 2121 and then again
        ([1, 2, 3, 4, 5, 1, 2, 3, 4], 1 / 6),
        (list(range(50)), 0.0),
    ],
)
def test_repeated_n_grams(ids: list[int], share: float) -> None:
    assert repeated_share(np.array(ids, np.int32)) == pytest.approx(share)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5))
def test_repeated_n_grams_as_a_set_counts_them(ids: list[int], n: int) -> None:
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    expected = 1 - len(set(grams)) / len(grams) if grams else 0.0
    assert repeated_share(np.array(ids, np.int32), n) == pytest.approx(expected)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_answers_does_not_matter(kinds: list[int], random: Any) -> None:
    made = [
        usable(sampled([1, 2, 0], [-1.0, -2.0, -0.5]), segments=[(0, 3)], num_bytes=2),
        usable(sampled([3, 4], [-1.0, -0.25], ended=False), segments=[(0, 2)], num_bytes=7),
        Answer(sampled([0]), None, "empty"),
    ]
    answers = [made[kind] for kind in kinds]
    shuffled = random.sample(answers, len(answers))
    first, again = (summary_of(1, 2, some, [3] * len(some)) for some in (answers, shuffled))
    assert first.left_out == again.left_out
    for name in ("usable", "ended", "tokens", "bytes", "distinct", "repeated", "student_nats_per_byte"):
        assert getattr(first, name) == pytest.approx(getattr(again, name), nan_ok=True), name


def round_of(ended: float, repeated: float) -> RoundSummary:
    return replace(summary_of(7, 175, [Answer(sampled([0]), None)], [1]), ended=ended, repeated=repeated)


def test_collapse_is_said_below_and_above_the_bounds() -> None:
    assert collapse_of(round_of(0.05, 0.5)) == {}
    said = collapse_of(round_of(0.0499, 0.501))
    assert list(said) == ["ended", "repeated"]
    assert said["ended"].startswith("round 7 (step 175): the student ended only 5.0% of its own answers")
    assert "rollouts.max_new_tokens" in said["ended"]
    assert said["repeated"].startswith("round 7 (step 175): the student repeats itself, 50% of the 4-grams")


def test_a_collapse_is_news_once_until_it_is_over() -> None:
    watch = CollapseWatch()
    bad, good, both = collapse_of(round_of(0.0, 0.0)), collapse_of(round_of(1.0, 0.0)), collapse_of(round_of(0.0, 1.0))
    heard = [len(watch.news(state)) for state in (good, bad, bad, both, good, both)]
    assert heard == [0, 1, 0, 1, 0, 2]


def test_the_divergence_is_the_difference_of_nats() -> None:
    judgment = RoundJudgment(3, 100, 1.25, 0.5)
    assert judgment.to_json() == {
        "round": 3,
        "step": 100,
        "teacher_nats_per_byte": 1.25,
        "student_nats_per_byte": 0.5,
        "kl_per_byte": 0.75,
    }


def test_long_texts_are_cut_where_they_are_least_missed() -> None:
    answer = ShownAnswer("long ago: what?", "that, and more", True, 1.0, 2.0, 14)
    cut = answer.clipped(5)
    assert (cut.prompt, cut.answer, cut.bytes) == ("…what?", "that,…", 14)
    assert answer.clipped(15) == answer
