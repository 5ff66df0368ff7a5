"""How a scorer reads what vLLM says of a text's tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from uld_ds.workers.vllm_scorer import _scored

IDS = np.array([7, 5, 9, 2], np.int32)


class Said(SimpleNamespace):
    """Flat log-probabilities, as vLLM has them: of each token but the first, its own and those of the likeliest two."""

    def __len__(self) -> int:
        return 4


def said(**changes: Any) -> Said:
    # Of the last token, which is among the likeliest, it tells twice.
    values = {
        "token_ids": [5, 1, 3, 9, 4, 1, 2, 6, 2],
        "logprobs": [-4.0, -0.5, -1.5, -3.0, -0.2, -2.0, -1.0, -0.7, -1.0],
    }
    return Said(**(values | changes))


def test_positions_are_chosen_and_the_text_itself_comes_first() -> None:
    log_probs, ids, top = _scored(said(), IDS, np.array([1, 3]), 2)
    assert log_probs.tolist() == [-4.0, -1.0]
    assert ids.tolist() == [[1, 3], [6, 2]]
    np.testing.assert_allclose(top, [[-0.5, -1.5], [-0.7, -1.0]], rtol=1e-6)


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="other tokens than were sent"):
        _scored(said(token_ids=[5, 1, 3, 9, 4, 1, 8, 6, 2]), IDS, np.array([3]), 2)
    with pytest.raises(ValueError, match="tells of 4 tokens, and 3 were sent"):
        _scored(said(), IDS[:3], np.array([1]), 2)
