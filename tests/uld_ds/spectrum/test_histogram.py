"""The grid of levels, and the largest probabilities."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.kernels import top_probabilities


def test_grid_edges_are_geometric_and_exact() -> None:
    grid = LevelGrid(mantissa_bits=1, floor_octave=3, top_octave=0)
    edges = grid.lower_edges(torch.device("cpu")).tolist()
    assert edges == [0.0, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0]
    assert grid.num_bins == 8
    widths = grid.widths(torch.device("cpu")).tolist()
    assert widths == [1 / 8, 1 / 16, 1 / 16, 1 / 8, 1 / 8, 1 / 4, 1 / 4, 0.0]


@pytest.mark.parametrize(
    ("bits", "floor", "top"), [(-1, 36, 0), (11, 36, 0), (5, 0, 0), (5, 7, 7), (5, 101, 0), (5, 9, -1)]
)
def test_impossible_grids_are_refused(bits: int, floor: int, top: int) -> None:
    with pytest.raises(ValueError, match="must"):
        LevelGrid(bits, floor, top)


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 700),
    share=st.floats(0.001, 1.0),
    distinct=st.integers(1, 1000),
    seed=st.integers(0, 10_000),
)
def test_top_probabilities_equal_a_plain_topk(vocab: int, share: float, distinct: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    p = torch.randint(0, distinct, (3, vocab), generator=rng) / distinct
    k = max(1, int(share * vocab))
    values, where = top_probabilities(p, k)
    assert torch.equal(values, p.topk(k).values)
    assert torch.equal(p.gather(1, where), values)
    assert all(len(set(row)) == k for row in where.tolist())
