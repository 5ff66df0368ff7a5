"""The top-k tokens by id: which, in what order, and what is left for the others."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from uld_ds.spectrum.top_tokens import TopTokens


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 300),
    k=st.integers(1, 80),
    distinct=st.integers(1, 40),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_of_equal_logits_the_lower_ids_come_first(
    vocab: int, k: int, distinct: int, seed: int, dtype: torch.dtype
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = (torch.randint(-distinct, distinct + 1, (3, vocab), generator=rng) / 4).to(dtype)
    top = TopTokens.from_logits(logits, k)
    for row in range(3):
        order = sorted(range(vocab), key=lambda token: (-float(logits[row, token]), token))
        assert top.ids[row].tolist() == order[: min(k, vocab)]
    want = logits.double().log_softmax(1).gather(1, top.ids)
    assert top.log_probs.dtype == torch.float32
    torch.testing.assert_close(top.log_probs.double(), want, rtol=1e-5, atol=1e-6)


def test_a_row_is_the_same_alone_and_among_others() -> None:
    logits = torch.randn(50, 70_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    together = TopTokens.from_logits(logits, 64)
    for row in (0, 29, 30, 49):
        alone = TopTokens.from_logits(logits[row : row + 1], 64)
        assert torch.equal(alone.ids[0], together.ids[row])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[row], rtol=0, atol=1e-6)


def test_both_zeros_are_equal() -> None:
    top = TopTokens.from_logits(torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1.0]]), 3)
    assert top.ids.tolist() == [[0, 1, 2]]


def test_rest_is_what_the_others_have() -> None:
    logits = torch.randn(20, 500, generator=torch.Generator().manual_seed(1))
    for k in (1, 7, 499, 500, 900):
        top = TopTokens.from_logits(logits, k)
        known = TopTokens.from_logits(logits, k, log_normalizer=logits.logsumexp(1))
        assert torch.equal(known.log_probs, top.log_probs)
        want = logits.double().softmax(1).sort(descending=True).values[:, k:].sum(1)
        torch.testing.assert_close(top.rest.double(), want, rtol=0, atol=1e-6)
        assert (top.rest >= 0).all()
        assert top.k == min(k, 500)


def test_rest_of_probabilities_that_rounding_made_too_large_is_nothing() -> None:
    top = TopTokens(torch.tensor([[3, 4]]), torch.tensor([[-0.5, -0.9]]))
    assert math.exp(-0.5) + math.exp(-0.9) > 1
    assert top.rest.tolist() == [0.0]


def test_impossible_tokens_and_padding() -> None:
    logits = torch.full((2, 6), -math.inf)
    logits[0, 2], logits[0, 5] = 1.0, 2.0
    top = TopTokens.from_logits(logits, 3)
    assert top.ids.tolist() == [[5, 2, 0], [0, 1, 2]]
    assert top.log_probs[0, 2] == -math.inf
    assert (top.log_probs[1] == -math.inf).all()
    torch.testing.assert_close(top.rest, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-7)
    assert TopTokens.from_logits(torch.full((1, 6), math.nan), 3).log_probs.isnan().all()


def test_rows_are_chosen_joined_and_cut() -> None:
    top = TopTokens.from_logits(torch.randn(6, 30, generator=torch.Generator().manual_seed(2)), 5)
    chosen = top[torch.tensor([4, 0])]
    assert len(chosen) == 2
    assert torch.equal(chosen.ids, top.ids[[4, 0]])
    again = TopTokens.cat([top[:2], top[2:]])
    assert torch.equal(again.log_probs, top.log_probs)
    assert torch.equal(again.ids, top.ids)
    assert torch.equal(top.first(2).ids, top.ids[:, :2])
    assert top.first(9).k == 5
    assert len(TopTokens.from_logits(torch.zeros(0, 30), 5)) == 0
    with pytest.raises(ValueError, match=r"\[3, 5\] tokens each"):
        TopTokens.cat([top, top.first(3)])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TopTokens.from_logits(torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match=r"\[T, V\]"):
        TopTokens.from_logits(torch.zeros(3), 1)
    with pytest.raises(ValueError, match=r"\[T, k\]"):
        TopTokens(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4))
