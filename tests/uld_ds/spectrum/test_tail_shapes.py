"""Estimates of unknown tails: they hold their mass, and the bound holds against whatever the truth may be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uld_ds.spectrum.rank_blocks import Array
from uld_ds.spectrum.tail_shapes import (
    CURVATURE,
    SHAPES,
    Tail,
    TailShape,
    blocks_beyond,
    estimate,
    least_overlap,
)


def by_rank(tail: Tail) -> Array:
    return np.repeat(tail.levels, tail.blocks.sizes, axis=1)


def error_of(tail: Tail, unknown: float, least: float) -> float:
    overlap = least_overlap(tail, np.array([unknown]), np.array([least]))[0]
    return float((tail.levels * tail.blocks.sizes).sum() + unknown - 2 * overlap)


def one(shape: TailShape, unknown: float, least: float, num_known: int, vocab: int) -> Tail:
    return estimate(shape, np.array([unknown]), np.array([least]), num_known, vocab)


def two_steps(unknown: float, least: float, num_ranks: int) -> Array:
    """Every tail that is ``least`` for a while, then another level, then nothing: the extreme ones. [T, M]"""
    found = []
    for high in range(int(unknown / least) + 1):
        left = unknown - high * least
        for low in range(1, num_ranks - high + 1):
            if left / low <= least * (1 + 1e-12):
                row = np.zeros(num_ranks)
                row[:high], row[high : high + low] = least, left / low
                found.append(row)
    return np.array(found)


@st.composite
def truncations(draw: st.DrawFn) -> tuple[float, float, int, int]:
    """Unknown mass, smallest known probability, known ranks and vocabulary of a distribution that there can be."""
    num_known = draw(st.integers(1, 30))
    num_ranks = draw(st.integers(1, 60))
    # What the known hold together is at least as many times the smallest.
    spread = draw(st.floats(0.02, 1)) * num_ranks  # u / c
    least = 1 / (spread + num_known * draw(st.floats(1, 50)))
    return spread * least, least, num_known, num_known + num_ranks


@pytest.mark.parametrize("shape", SHAPES)
@given(truncation=truncations())
@settings(max_examples=60, deadline=None)
def test_an_estimate_is_a_tail_that_there_can_be(shape: TailShape, truncation: tuple[float, float, int, int]) -> None:
    unknown, least, num_known, vocab = truncation
    tail = one(shape, unknown, least, num_known, vocab)
    levels = by_rank(tail)[0]
    assert len(levels) == vocab - num_known
    assert (np.diff(levels) <= 1e-15).all()
    assert levels.max() <= least * (1 + 1e-12)
    assert levels.sum() == pytest.approx(0 if shape == "left_out" else unknown, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
@given(truncation=truncations(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_no_true_tail_is_further_away_than_the_error(
    shape: TailShape, truncation: tuple[float, float, int, int], seed: int
) -> None:
    unknown, least, num_known, vocab = truncation
    tail = one(shape, unknown, least, num_known, vocab)
    extremes = two_steps(unknown, least, vocab - num_known)
    # Means of extremes are all that there is.
    weights = np.random.default_rng(seed).dirichlet(np.full(len(extremes), 0.1), 50)
    truths = np.concatenate([extremes, weights @ extremes])
    assert truths.sum(axis=1) == pytest.approx(unknown)
    furthest = np.abs(by_rank(tail) - truths).sum(axis=1).max()
    error = error_of(tail, unknown, least)
    assert furthest <= error + 1e-12
    assert error <= 2 * unknown + 1e-12
    if shape == "left_out":
        assert error == pytest.approx(unknown) == furthest


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_hardly_more_than_the_worst_there_is(shape: TailShape) -> None:
    # Slow to search through, so one size: 12 known, 388 unknown, four masses.
    for unknown in (0.02, 0.1, 0.2, 0.3):
        least = (1 - unknown) / 60
        tail = one(shape, unknown, least, 12, 400)
        worst = np.abs(by_rank(tail) - two_steps(unknown, least, 388)).sum(axis=1).max()
        assert worst - 1e-12 <= error_of(tail, unknown, least) <= 1.2 * worst + 1e-12


def test_hand_computed_errors() -> None:
    # u = 0.4 at most 0.2 each on 4 ranks. Flat, [0.1] * 4, is furthest from [0.2, 0.2, 0, 0]: 4 * 0.1.
    assert error_of(one("flat", 0.4, 0.2, 3, 7), 0.4, 0.2) == pytest.approx(0.4)
    # [0.2, 0.2, 0, 0] is furthest from [0.1] * 4.
    assert error_of(one("as_fits", 0.4, 0.2, 3, 7), 0.4, 0.2) == pytest.approx(0.4)
    assert error_of(one("left_out", 0.4, 0.2, 3, 7), 0.4, 0.2) == pytest.approx(0.4)
    # Where only one tail is possible, nothing can be wrong.
    assert error_of(one("bent", 0.4, 0.1, 6, 10), 0.4, 0.1) == pytest.approx(0.0, abs=1e-12)
    assert error_of(one("bent", 0.1, 0.2, 6, 7), 0.1, 0.2) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("shape", "curvature"), [("power", 0.0), ("bent", CURVATURE)])
def test_a_tail_of_the_shape_itself_is_found(shape: TailShape, curvature: float) -> None:
    num_known, vocab = 20, 20_000
    log_rank = np.log(np.arange(num_known + 1, vocab + 1) / num_known)
    true = np.exp(-1.3 * log_rank - curvature * log_rank**2) * 2e-3
    tail = one(shape, float(true.sum()), 2e-3, num_known, vocab)
    assert np.abs(by_rank(tail)[0] - true).sum() <= 0.03 * true.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_does_not_depend_on_the_others(shape: TailShape) -> None:
    rng = np.random.default_rng(0)
    unknown, least = rng.uniform(0, 0.5, 40), rng.uniform(1e-4, 1e-2, 40)
    whole = estimate(shape, unknown, least, 64, 49_152)
    for row in (0, 17, 39):
        alone = estimate(shape, unknown[[row]], least[[row]], 64, 49_152)
        assert np.array_equal(alone.levels[0], whole.levels[row])
        overlaps = [
            least_overlap(alone, unknown[[row]], least[[row]])[0],
            least_overlap(whole, unknown, least)[row],
        ]
        assert overlaps[0] == overlaps[1]


def test_blocks_tile_the_unknown_ranks() -> None:
    for num_known, vocab in ((1, 2), (20, 49_152), (64, 65), (256, 262_144), (5, 5)):
        blocks = blocks_beyond(num_known, vocab)
        assert blocks.sizes.sum() == vocab - num_known
        assert np.array_equal(np.cumsum(blocks.sizes), blocks.ends)
        assert (blocks.sizes > 0).all()
