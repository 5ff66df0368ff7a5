"""Two tails compared by their level counts: the distance, and how far it can be off."""

from __future__ import annotations

import pytest
import torch

from uld_ds.spectrum.histogram import LevelCounts, LevelGrid
from uld_ds.spectrum.histogram_distance import compare


def test_comparison_of_tails_by_hand() -> None:
    grid = LevelGrid(mantissa_bits=0, floor_octave=2, top_octave=0)  # edges 0, 1/4, 1/2, 1
    counts = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    p = LevelCounts(counts, torch.tensor([[0.0, 0.3, 0.6, 0.0]]))
    q = LevelCounts(torch.tensor([[0.0, 2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.8, 0.0, 0.0]]))
    # Sorted: .6 .3 against two of sum .8 within [1/4, 1/2): .4 .4, .35 .45 or .31 .49, we cannot know.
    areas = compare(p, q, grid)
    assert areas.bound is not None
    for first in (0.31, 0.35, 0.4):
        true = abs(0.6 - (0.8 - first)) + abs(0.3 - first)
        assert abs(areas.distance.item() - true) <= areas.bound.item() + 1e-6


def tail(counts: list[float], masses: list[float]) -> LevelCounts:
    return LevelCounts(torch.tensor([counts]), torch.tensor([masses]))


def test_no_error_where_no_sign_can_change() -> None:
    grid = LevelGrid(mantissa_bits=0, floor_octave=2, top_octave=0)
    areas = compare(tail([0, 0, 2, 0], [0, 0, 1.3, 0]), tail([0, 1, 0, 0], [0, 0.3, 0, 0]), grid)
    assert areas.distance.item() == pytest.approx(1.0)
    assert areas.bound is not None
    assert areas.bound.item() <= 1e-6


def test_bound_beyond_both_ends_of_the_grid() -> None:
    grid = LevelGrid(mantissa_bits=0, floor_octave=2, top_octave=0)
    # Above the grid: 5 and 1.5 against 3.4 and 3 are 3.1 apart; the sums differ by 0.1 only.
    above = compare(tail([0, 0, 0, 2], [0, 0, 0, 6.5]), tail([0, 0, 0, 2], [0, 0, 0, 6.4]), grid)
    assert above.bound is not None
    assert above.bound.item() >= 3.1 - above.distance.item()
    # Below it: one of 0.2 against a hundred of 0.002 are 0.396 apart, and look the same.
    below = compare(tail([0, 0, 0, 0], [0.2, 0, 0, 0]), tail([0, 0, 0, 0], [0.2, 0, 0, 0]), grid)
    assert below.bound is not None
    assert below.bound.item() >= 0.396 - below.distance.item()
