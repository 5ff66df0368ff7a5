"""The ULD distance by hand-computed cases, its derivatives, and that it is a metric."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.spectra_zoo import reference_distance, zipf
from tests.helpers.uld_methods import METHODS, Method
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.uld.distance import UldTerms, uld_distance, uld_value_and_grad


def logits_of(*rows: list[float]) -> Tensor:
    """Float64 logits of rows of probabilities (0 becomes -inf)."""
    return torch.tensor(rows, dtype=torch.float64).log()


# --- the definition -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_hand_computed_distance(method: Method) -> None:
    student = logits_of([0.5, 0.2, 0.3])
    teacher = logits_of([0.1, 0.6, 0.1, 0.2])
    # sorted: (.5 .3 .2 0) against (.6 .2 .1 .1)
    assert uld_distance(student, teacher, method=method).item() == pytest.approx(0.4, abs=1e-7)
    assert uld_distance(teacher, student, method=method).item() == pytest.approx(0.4, abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_hand_computed_gradient(method: Method) -> None:
    student = logits_of([0.5, 0.2, 0.3]).requires_grad_()
    uld_distance(student, logits_of([0.1, 0.6, 0.1, 0.2]), method=method).backward()
    # signs of p - q at the ranks of .5, .2, .3: -1, +1, +1; their mean under p: 0; so dW/dz = p * s
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[-0.5, 0.2, 0.3]]).double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_equal_probabilities_share_their_gradient(method: Method) -> None:
    # sorted: (.4 .2 .2 .2) against (.5 .25 .15 .1): signs - - + +, and the three equal ones cannot be told apart
    student = logits_of([0.2, 0.4, 0.2, 0.2]).requires_grad_()
    uld_distance(student, logits_of([0.5, 0.25, 0.15, 0.1]), method=method).backward()
    mean = 0.4 * -1 + 0.6 / 3
    want = torch.tensor([[0.2 * (1 / 3 - mean), 0.4 * (-1 - mean), 0.2 * (1 / 3 - mean), 0.2 * (1 / 3 - mean)]])
    assert student.grad is not None
    torch.testing.assert_close(student.grad, want.double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("v_s", "v_t"), [(40, 90), (90, 40), (7, 7), (1, 5), (5, 1), (300, 700)])
def test_any_vocabulary_sizes(method: Method, v_s: int, v_t: int) -> None:
    student, teacher = zipf(5, v_s, seed=1), zipf(5, v_t, seed=2)
    want = reference_distance(torch.softmax(student, -1), torch.softmax(teacher, -1))
    got = uld_distance(student, teacher, method=method, num_head=16)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-4)


def test_exact_passes_gradcheck() -> None:
    student, teacher = zipf(3, 12, seed=3).requires_grad_(), zipf(3, 17, seed=4)
    log_scale = torch.tensor([-0.3, 0.0, -1.0], dtype=torch.float64, requires_grad=True)

    def distance(z: Tensor, a: Tensor) -> Tensor:
        return uld_distance(
            z,
            teacher,
            method="exact",
            student_temperature=1.7,
            student_log_scale=a,
            teacher_log_scale=torch.tensor([-0.2, -0.5, 0.0]).double(),
        )

    assert torch.autograd.gradcheck(distance, (student, log_scale))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_linear_gradient_matches_finite_differences(temperature: float) -> None:
    student, teacher = zipf(4, 120, seed=5), zipf(4, 150, seed=6)
    spectrum = Spectrum.from_logits(teacher, num_head=16)
    log_scale = torch.tensor([0.0, -0.4, -2.0, 0.3], dtype=torch.float64)

    def terms(z: Tensor, a: Tensor) -> UldTerms:
        return uld_value_and_grad(z, spectrum, student_temperature=temperature, student_log_scale=a)

    grad = terms(student, log_scale).grad
    assert grad is not None
    # Steps so small that no probability changes the side of its teacher's counterpart.
    h = 1e-6
    for column in (0, 17, 63, 119, *student.argmax(-1).tolist()):
        step = torch.zeros_like(student)
        step[:, column] = h
        up, down = terms(student + step, log_scale).distance, terms(student - step, log_scale).distance
        torch.testing.assert_close((up - down) / (2 * h), grad[:, column], atol=2e-6, rtol=1e-3)
    up, down = terms(student, log_scale + h).distance, terms(student, log_scale - h).distance
    torch.testing.assert_close((up - down) / (2 * h), terms(student, log_scale).grad_log_scale, atol=2e-6, rtol=1e-3)


def test_backward_can_run_twice_and_scales_by_row() -> None:
    z = zipf(3, 500, seed=1).float().requires_grad_()
    distance = uld_distance(z, zipf(3, 600, seed=2).float())
    (once,) = torch.autograd.grad(distance.sum(), z, retain_graph=True)
    weights = torch.tensor([0.0, 2.0, -1.0])
    (again,) = torch.autograd.grad((distance * weights).sum(), z)
    torch.testing.assert_close(again, once * weights[:, None])


# --- metric properties --------------------------------------------------------------------------------------------

probability_rows = st.lists(st.floats(min_value=0.0, max_value=1.0), min_size=1, max_size=40).filter(
    lambda row: sum(row) > 0.05
)


def as_logits(row: list[float]) -> Tensor:
    weights = torch.tensor([row], dtype=torch.float64)
    return (weights / weights.sum()).log()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(a=probability_rows, b=probability_rows, c=probability_rows)
def test_metric(method: Method, a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = as_logits(a), as_logits(b), as_logits(c)

    def d(p: Tensor, q: Tensor) -> float:
        # A short head, so that levels and not ranks do the work.
        return uld_distance(p, q, method=method, num_head=2).item()

    slack = 1e-9 if method == "exact" else 2e-3
    assert 0 <= d(x, y) <= 2 + slack
    assert d(x, x) <= slack
    assert d(x, y) == pytest.approx(d(y, x), abs=slack)
    assert d(x, z) <= d(x, y) + d(y, z) + slack
    want = reference_distance(x.exp(), y.exp()).item()
    assert d(x, y) == pytest.approx(want, abs=slack)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(
    a=probability_rows,
    b=probability_rows,
    seed=st.integers(0, 1000),
    extra=st.integers(0, 30),
)
def test_invariance_to_order_and_impossible_tokens(
    method: Method, a: list[float], b: list[float], seed: int, extra: int
) -> None:
    x, y = as_logits(a), as_logits(b)
    rng = torch.Generator().manual_seed(seed)
    padded = F.pad(x, (0, extra), value=-math.inf)
    shuffled = padded[:, torch.randperm(padded.shape[1], generator=rng)]
    turned = y[:, torch.randperm(y.shape[1], generator=rng)]
    plain = uld_distance(x, y, method=method, num_head=2)
    moved = uld_distance(shuffled, turned, method=method, num_head=2)
    torch.testing.assert_close(plain, moved, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_zero_exactly_when_spectra_agree(method: Method) -> None:
    student = zipf(3, 3000, seed=1)
    same = student[:, torch.randperm(3000, generator=torch.Generator().manual_seed(0))]
    z = student.float().requires_grad_()
    distance = uld_distance(z, F.pad(same, (0, 9), value=-math.inf).float(), method=method)
    assert distance.max() <= 2e-6
    # Half a percent of one small probability moved elsewhere is seen.
    other = same.clone()
    other[:, 5] += 0.005
    assert (uld_distance(student, other, method=method) > 0).all()
