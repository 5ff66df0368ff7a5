"""The difference of two teachers: a case by hand, its gradient, and what cancels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uld_ds.losses.difference import centered_difference, tilted
from uld_ds.losses.likelihood import likelihood_term


def logs(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def test_a_case_by_hand() -> None:
    # Log-ratios log 4, 0 and log 2 in the first answer, whose mean is log 2; one segment alone says nothing.
    example = torch.tensor([0, 0, 0, 1])
    difference = centered_difference(logs(0.8, 0.3, 0.5, 0.9), logs(0.2, 0.3, 0.25, 0.1), example)
    expected = torch.tensor([math.log(2), -math.log(2), 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-15)
    # Odds of 1:1 become 2:1 and 1:2; the others stay.
    target = tilted(logs(0.5, 0.5, 0.25, 0.6), difference).exp()
    torch.testing.assert_close(target, torch.tensor([2 / 3, 1 / 3, 0.25, 0.6], dtype=torch.float64), rtol=1e-12, atol=0)
    term = likelihood_term(target.log(), logs(0.5, 0.5, 0.25, 0.6))
    kl = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    torch.testing.assert_close(
        term.value, torch.tensor([kl, kl, 0.0, 0.0], dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


@given(
    st.lists(st.tuples(*[st.floats(0.01, 0.99)] * 3), min_size=1, max_size=8),
    st.floats(0.1, 1.0),
)
def test_the_student_moves_along_the_difference_and_no_faster_than_it_may(
    values: list[tuple[float, float, float]], surer: float
) -> None:
    strong, weak, own = (torch.tensor(side, dtype=torch.float64).log() for side in zip(*values, strict=True))
    example = torch.zeros(len(values), dtype=torch.long)
    difference = centered_difference(strong, weak, example)
    assert difference.sum().abs() < 1e-9
    # How sure a teacher is in general cancels.
    torch.testing.assert_close(centered_difference(strong, weak + math.log(surer), example), difference)
    odds = (own - torch.log1p(-own.exp())).requires_grad_()
    log_q = torch.nn.functional.logsigmoid(odds)
    target = tilted(log_q.detach(), difference)
    term = likelihood_term(target, log_q.detach())
    (slope,) = torch.autograd.grad(log_q, odds, term.slope)
    # KL(p*, q) along the log-odds: q - p*.
    torch.testing.assert_close(slope, (log_q.exp() - target.exp()).detach(), rtol=1e-6, atol=1e-9)
    assert slope.abs().max() <= 1
    assert all(
        math.copysign(1, -s) == math.copysign(1, d) for s, d in zip(slope, difference, strict=True) if abs(d) > 1e-6
    )


def test_there_is_none_of_no_segments() -> None:
    nothing = torch.zeros(0)
    assert len(centered_difference(nothing, nothing, torch.zeros(0, dtype=torch.long))) == 0
    assert tilted(logs(1.0), torch.tensor([3.0])).item() == pytest.approx(0, abs=1e-4)
