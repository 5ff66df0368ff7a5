"""The plan of a step: every example once, within the budget, alike much on every rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld_ds.data.step_plan import IGNORED, Budget, first_fit, plan_step, work

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(lengths=LENGTHS, tokens=st.integers(1, 400), examples=st.none() | st.integers(1, 9), ranks=st.integers(1, 5))
def test_a_plan(lengths: list[int], tokens: int, examples: int | None, ranks: int) -> None:
    sizes = np.array(lengths)
    seconds = work(sizes.astype(float), 100.0)
    step = np.array([*range(len(sizes)), IGNORED, IGNORED])
    plan = plan_step(step, sizes, seconds, Budget(tokens, examples), ranks)

    assert len(plan) == ranks
    assert len({len(of_rank) for of_rank in plan}) == 1
    found = [example for of_rank in plan for group in of_rank for example in group.tolist()]
    assert sorted(example for example in found if example != IGNORED) == list(range(len(sizes)))
    for of_rank in plan:
        for group in of_rank:
            real = group[group != IGNORED]
            assert len(real) == len(group) or group.tolist() == [IGNORED]
            assert len(real) <= 1 or sizes[real].sum() <= tokens
            assert examples is None or len(real) <= examples
    # Longest first to whoever has least: nobody is ahead of anybody by more than one example.
    loads = [sum(seconds[group[group != IGNORED]].sum() for group in of_rank) for of_rank in plan]
    assert max(loads) - min(loads) <= seconds.max() + 1e-9


@given(
    lengths=st.lists(st.integers(1, 100), min_size=200, max_size=200), ranks=st.integers(2, 4), seed=st.integers(0, 9)
)
def test_ranks_work_alike_where_lengths_allow(lengths: list[int], ranks: int, seed: int) -> None:
    sizes = np.array(lengths)
    seconds = work(sizes.astype(float), 6 * 64.0)
    step = np.random.default_rng(seed).permutation(len(sizes))
    plan = plan_step(step, sizes, seconds, Budget(512), ranks)
    loads = np.array([sum(seconds[group[group != IGNORED]].sum() for group in of_rank) for of_rank in plan])
    assert loads.max() / loads.mean() < 1.05
    # What is dealt to whom does not depend on the order in which the step names its examples.
    again = plan_step(np.sort(step), sizes, seconds, Budget(512), ranks)
    assert [[group.tolist() for group in own] for own in plan] == [[group.tolist() for group in own] for own in again]


@given(lengths=LENGTHS, tokens=st.integers(300, 900))
def test_first_fit_wastes_little(lengths: list[int], tokens: int) -> None:
    ordered = sorted(lengths, reverse=True)
    groups = first_fit(ordered, tokens)
    fewest = max(1, -(-sum(ordered) // tokens))
    assert len(groups) <= 11 / 9 * fewest + 6 / 9 + sum(length > tokens / 2 for length in ordered)
    # At most one group is less than half full.
    assert sum(sum(ordered[place] for place in group) * 2 <= tokens for group in groups) <= 1


@given(lengths=LENGTHS, tokens=st.integers(1, 900), ranks=st.integers(1, 3))
def test_a_budget_counts_padding_where_there_is_any(lengths: list[int], tokens: int, ranks: int) -> None:
    sizes = np.array(lengths)
    plan = plan_step(np.arange(len(sizes)), sizes, sizes.astype(float), Budget(tokens, padded=True), ranks)
    groups = [group for of_rank in plan for group in of_rank if group[0] != IGNORED]
    assert sorted(example for group in groups for example in group.tolist()) == list(range(len(sizes)))
    assert all(len(group) == 1 or len(group) * sizes[group].max() <= tokens for group in groups)


def test_a_plan_by_hand() -> None:
    lengths = np.array([10, 7, 6, 5, 4, 3, 2, 1])
    plan = plan_step(np.arange(8), lengths, lengths.astype(float), Budget(12), 2)
    # Dealt: 10, 5, 3, 1 to the first, and 7, 6, 4, 2 to the second; 19 tokens each.
    assert [[group.tolist() for group in own] for own in plan] == [[[0, 7], [3, 5]], [[1, 4], [2, 6]]]


def test_a_rank_without_examples_has_stand_ins() -> None:
    plan = plan_step(np.array([2, 0]), np.array([9, 1, 8]), np.array([9.0, 1.0, 8.0]), Budget(20), 3)
    assert [[group.tolist() for group in own] for own in plan] == [[[0]], [[2]], [[IGNORED]]]


def test_the_largest_is_halved_before_there_are_stand_ins() -> None:
    lengths = np.array([20, 20, 20, 9, 8, 7])
    plan = plan_step(np.arange(6), lengths, np.ones(6), Budget(24), 2)
    assert [[group.tolist() for group in own] for own in plan] == [[[0], [2], [4]], [[1], [3], [5]]]


@pytest.mark.parametrize(("length", "expected"), [(1, 1 + 1 / 384), (384, 768.0), (768, 3 * 768.0)])
def test_work_by_hand(length: int, expected: float) -> None:
    assert work(np.array([float(length)]), 384.0)[0] == pytest.approx(expected)
