"""Ways to answer prompts together: how they are grouped and filled up. That they are measured: test_sampling.py."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from uld_ds.generation.ways import Way, groups, left_padded, right_padded

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("together", "wanted"), [("any", [[0, 1, 2, 3]]), ("equal", [[0, 2], [1], [3]]), ("alone", [[0], [1], [2], [3]])]
)
def test_groups(together: Literal["any", "equal", "alone"], wanted: list[list[int]]) -> None:
    assert groups([5, 3, 5, 4], Way(together, caches=True)) == wanted


def test_padding_is_beside_the_prompts() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], 1, CPU)
    assert ids.tolist() == [[5, 6, 7], [1, 1, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = right_padded([[5, 6, 7], [8]], 1, CPU)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
