"""The ULD distance at a temperature, and of spectra scaled by row."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.spectra_zoo import cosine, reference_distance, reference_with_gradient, zipf
from tests.helpers.uld_methods import METHODS, Method
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.uld.distance import uld_distance, uld_value_and_grad

# --- temperature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_temperatures_divide_the_logits(method: Method) -> None:
    student, teacher = zipf(4, 2000, seed=1), zipf(4, 3000, seed=2)
    z = student.clone().requires_grad_()
    got = uld_distance(z, teacher, student_temperature=2.0, teacher_temperature=0.5, method=method)
    want, want_grad = reference_with_gradient(student / 2, teacher * 2)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)
    got.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad.norm(), 0.5 * want_grad.norm(), rtol=1e-4, atol=0)
    assert cosine(z.grad, want_grad) >= 0.99999


def test_a_spectrum_made_at_a_temperature() -> None:
    student, teacher = zipf(4, 2000, seed=1).float(), zipf(4, 3000, seed=2).float()
    spectrum = Spectrum.from_logits(teacher, temperature=0.5)
    want = uld_distance(student, teacher, teacher_temperature=0.5)
    for asked in (1.0, 0.5):
        got = uld_distance(student, spectrum, teacher_temperature=asked)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


# --- scaled spectra (chain-merged segments) -----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given_as", ["argument", "shift"])
def test_log_scales_multiply_the_probabilities(method: Method, given_as: str) -> None:
    student, teacher = zipf(6, 3000, seed=1), zipf(6, 5000, seed=2)
    a = torch.tensor([0.0, -0.5, -3.0, -7.0, -0.1, -9.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([-0.5, 0.0, -3.0, -2.0, -14.0, -8.0], dtype=torch.float64)
    p = torch.softmax(student, -1) * a.detach().exp()[:, None]
    q = torch.softmax(teacher, -1) * b.exp()[:, None]
    want = reference_distance(p, q)
    z = student.clone().requires_grad_()
    if given_as == "argument":
        got = uld_distance(z, teacher, method=method, student_log_scale=a, teacher_log_scale=b)
    else:
        spectrum = Spectrum.from_logits(teacher).shift(b)
        got = uld_distance(z, spectrum, method=method, student_log_scale=a)
    torch.testing.assert_close(got, want, rtol=3e-4, atol=0)
    assert (got <= a.exp() + b.exp() + 1e-9).all()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5, 1.0], dtype=torch.float64)
    (got * weights).sum().backward()

    z2, a2 = student.clone().requires_grad_(), a.detach().clone().requires_grad_()
    exact = uld_distance(z2, teacher, method="exact", student_log_scale=a2, teacher_log_scale=b)
    (exact * weights).sum().backward()
    assert z.grad is not None and z2.grad is not None and a.grad is not None and a2.grad is not None
    torch.testing.assert_close(a.grad, a2.grad, rtol=2e-2, atol=0)
    # Rows whose signs all agree have no gradient at all, so the error is held against the probabilities.
    error = (z.grad - z2.grad).norm(dim=1)
    assert (error <= 0.02 * p.norm(dim=1)).all()


def test_a_student_scaled_above_one_is_still_bounded() -> None:
    student, teacher = zipf(3, 3000, seed=1), zipf(3, 5000, seed=2)
    a = torch.tensor([2.0, 8.0, 40.0], dtype=torch.float64)
    spectrum = Spectrum.from_logits(teacher.float(), num_head=8)
    got = uld_value_and_grad(student.float(), spectrum, student_log_scale=a)
    p, q = torch.softmax(student, -1) * a.exp()[:, None], torch.softmax(teacher, -1)
    want = reference_distance(p, q)
    torch.testing.assert_close(got.distance.double(), want, rtol=1e-3, atol=0)
    assert got.bound is not None
    assert ((got.distance.double() - want).abs() <= got.bound).all()


def test_extreme_scales_stay_finite() -> None:
    student, teacher = zipf(4, 300, seed=1).float(), zipf(4, 500, seed=2).float()
    a = torch.tensor([30.0, 0.0, -200.0, -math.inf])
    b = torch.tensor([-60.0, -200.0, 0.0, 0.0])
    got = uld_value_and_grad(student, Spectrum.from_logits(teacher).shift(b), student_log_scale=a)
    # One side vanishes, so the distance is the other's mass.
    torch.testing.assert_close(got.distance, torch.tensor([math.exp(30.0), 1.0, 1.0, 1.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(got.grad_log_scale[:2], got.distance[:2])
    assert got.grad is not None
    assert torch.isfinite(got.grad).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_scale_that_is_no_number_spoils_its_own_row_only(bad: float) -> None:
    student, teacher = zipf(3, 300, seed=1).float(), zipf(3, 500, seed=2).float()
    got = uld_distance(student, teacher, student_log_scale=torch.tensor([0.0, bad, -1.0]))
    assert torch.isnan(got).tolist() == [False, True, False]
