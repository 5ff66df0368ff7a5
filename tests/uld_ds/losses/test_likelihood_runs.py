"""Runs of segments: where they end, and what likelihood matching makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.objective_case import NOTHING, segments_of
from uld_ds.batches import SegmentRows
from uld_ds.losses.likelihood import likelihood_term
from uld_ds.losses.likelihood_runs import likelihood_part, runs_of, word_may_be_over
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum.top_tokens import TopTokens

ANSWERS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=9), min_size=1, max_size=4)


def settings_of(**changes: Any) -> ObjectiveSettings:
    return ObjectiveSettings(likelihood=1.0, **changes)


def rows_of(answers: list[list[int]], merge: str = "first") -> tuple[SegmentRows, Tensor]:
    """Segments of so many tokens, answer by answer, and the positions that predict those tokens."""
    lengths = torch.tensor([length for answer in answers for length in answer])
    stops = lengths.cumsum(0)
    position, positions = 3, []
    for answer in answers:
        positions += range(position, position + sum(answer))
        position += sum(answer) + 1  # the least that stands between two answers
    return segments_of(stops - lengths, stops, int(stops[-1]), merge), torch.tensor(positions)


def test_runs_by_hand() -> None:
    segments, positions = rows_of([[1, 2, 1, 3], [2], [1, 1, 1]])
    assert runs_of(segments, positions, 1).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert runs_of(segments, positions, 2).tolist() == [0, 0, 1, 1, 2, 3, 3, 4]
    assert runs_of(segments, positions, 3).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]
    assert runs_of(segments, positions, 99).tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    assert runs_of(segments_of(NOTHING, NOTHING, 4), torch.arange(4), 3).tolist() == []


@given(answers=ANSWERS, length=st.integers(1, 12), merge=st.sampled_from(["first", "chain"]))
def test_runs_fill_answers_and_never_cross_them(answers: list[list[int]], length: int, merge: str) -> None:
    segments, positions = rows_of(answers, merge)
    expected: list[int] = []
    for answer in answers:
        base = expected[-1] + 1 if expected else 0
        expected += [base + n // length for n in range(len(answer))]
    assert runs_of(segments, positions, length).tolist() == expected


def test_runs_end_only_where_they_may() -> None:
    segments, positions = rows_of([[1, 2, 1, 3], [2], [1, 1, 1]])
    may_begin = torch.tensor([False, False, True, True, False, True, False, True])
    assert runs_of(segments, positions, 1, may_begin).tolist() == [0, 0, 1, 2, 3, 4, 4, 5]
    assert runs_of(segments, positions, 2, may_begin).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]
    assert runs_of(segments, positions, 1, torch.zeros(8, dtype=torch.bool)).tolist() == [0, 0, 0, 0, 1, 2, 2, 2]


@given(answers=ANSWERS, length=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_run_but_an_answers_last_has_so_many_stretches(answers: list[list[int]], length: int, seed: int) -> None:
    segments, positions = rows_of(answers)
    may_begin = torch.rand(len(segments), generator=torch.Generator().manual_seed(seed)) < 0.5
    expected, run = [], -1
    for answer in answers:
        stretch = -1
        for place in range(len(answer)):
            if place == 0 or may_begin[len(expected)]:
                stretch += 1
                run += stretch % length == 0
            expected.append(run)
    assert runs_of(segments, positions, length, may_begin).tolist() == expected
    anywhere = torch.ones(len(segments), dtype=torch.bool)
    assert torch.equal(runs_of(segments, positions, length, anywhere), runs_of(segments, positions, length))


def test_a_word_may_be_over_where_the_teacher_expects_whitespace() -> None:
    # Tokens: "a", " a", "\n", the end of a turn; id 7 is beyond the tokenizer's.
    ends_word = torch.tensor([False, True, True, True])
    p = torch.tensor([[0.5, 0.3], [0.75, 0.125], [0.5, 0.125], [0.9, 0.05], [0.0, 0.0]])
    top = TopTokens(torch.tensor([[0, 7], [1, 3], [0, 2], [0, 1], [0, 1]]), p.log())
    assert word_may_be_over(top, ends_word, 0.1).tolist() == [False, True, True, False, False]
    assert word_may_be_over(top, ends_word, 0.2).tolist() == [False, True, False, False, False]


def random_case(seed: int, runs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = -torch.rand(2, len(runs), generator=generator, dtype=torch.float64) * 3 - 0.05
    return teacher, student, torch.rand(len(runs), generator=generator, dtype=torch.float64)


RUNS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3])


def test_runs_of_one_are_the_segments() -> None:
    teacher, student, weights = random_case(0, RUNS)
    found = likelihood_part(teacher, student, torch.arange(len(RUNS)), weights, settings_of())
    term = likelihood_term(teacher, student)
    torch.testing.assert_close(found.value, term.value @ weights)
    torch.testing.assert_close(found.slopes, term.slope * weights)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
def test_zero_iff_the_runs_probabilities_agree(divergence: Any) -> None:
    teacher, _, weights = random_case(1, RUNS)
    settings = settings_of(likelihood_divergence=divergence, likelihood_temperature=3.0)
    moved = teacher + torch.tensor([0.4, -0.1, -0.3, 0, 0.2, -0.2, -0.5, 0.25, 0.25], dtype=torch.float64)
    same = likelihood_part(teacher, moved, RUNS, weights, settings)
    assert same.value.item() == pytest.approx(0, abs=1e-12)
    assert likelihood_part(teacher, moved, torch.arange(len(RUNS)), weights, settings).value > 1e-4
    for segment in range(len(RUNS)):
        other = moved.clone()
        other[segment] -= 0.1
        assert likelihood_part(teacher, other, RUNS, weights, settings).value > 1e-6


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
def test_the_slopes_are_finite_differences(divergence: Any) -> None:
    teacher, student, weights = random_case(2, RUNS)
    settings, width = settings_of(likelihood_divergence=divergence, likelihood_temperature=2.0), 1e-6
    slopes = likelihood_part(teacher, student, RUNS, weights, settings).slopes
    for segment in range(len(RUNS)):
        ends = []
        for move in (width, -width):
            other = student.clone()
            other[segment] += move
            ends.append(likelihood_part(teacher, other, RUNS, weights, settings).value)
        assert slopes[segment].item() == pytest.approx((ends[0] - ends[1]).item() / (2 * width), rel=1e-5, abs=1e-9)


def test_a_run_counts_as_much_as_its_segments() -> None:
    teacher, student, weights = torch.tensor([-0.5, -0.5]), torch.tensor([-1.0, -1.5]), torch.tensor([0.25, 0.5])
    found = likelihood_part(teacher, student, torch.tensor([0, 0]), weights, settings_of())
    term = likelihood_term(torch.tensor([-1.0]), torch.tensor([-2.5]))
    assert found.value.item() == pytest.approx(0.75 * term.value.item())
    assert found.slopes.tolist() == pytest.approx([0.75 * term.slope.item()] * 2)
