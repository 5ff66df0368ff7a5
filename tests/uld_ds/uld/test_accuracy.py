"""The linear ULD distance and its gradient against a float64 sorted reference, and the bound it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.spectra_zoo import (
    cosine,
    gaussian,
    masked,
    one_hot,
    reference_distance,
    reference_with_gradient,
    zipf,
)
from tests.helpers.uld_methods import METHODS, Method
from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.uld.distance import UldTerms, uld_distance, uld_value_and_grad


def terms_of(student: Tensor, teacher: Tensor, **options: Any) -> UldTerms:
    spectrum = Spectrum.from_logits(teacher.float())
    return uld_value_and_grad(student.float(), spectrum, **options)


# --- linear against the float64 reference -------------------------------------------------------------------------

ZOO = {
    "zipf": lambda: (zipf(8, 10_000, seed=1), zipf(8, 30_000, seed=2)),
    "zipf, student larger": lambda: (zipf(8, 30_000, seed=3), zipf(8, 10_000, seed=4)),
    "shallow": lambda: (zipf(8, 10_000, slope=1.0, noise=0.5, seed=5), zipf(8, 30_000, slope=1.1, noise=0.7, seed=6)),
    "peaked": lambda: (zipf(8, 10_000, slope=2.5, seed=7), zipf(8, 30_000, slope=2.0, seed=8)),
    "alike": lambda: (zipf(8, 10_000, seed=9), zipf(8, 10_000, seed=10)),
    "one-hot teacher": lambda: (zipf(8, 10_000, seed=13), one_hot(8, 30_000)),
    "masked": lambda: (masked(zipf(8, 10_000, seed=14), every=3), masked(zipf(8, 30_000, seed=15), every=2)),
    "tiny": lambda: (zipf(8, 90, seed=16), zipf(8, 700, seed=17)),
}


@pytest.mark.parametrize("case", ZOO)
def test_spectrum_distance_and_gradient_hold_the_promise(case: str) -> None:
    student, teacher = ZOO[case]()
    want, want_grad = reference_with_gradient(student, teacher)
    got = terms_of(student, teacher)
    relative = (got.distance.double() - want).abs() / want
    assert relative.max() <= 1e-3
    assert relative.mean() <= 2e-4
    assert got.grad is not None
    assert cosine(got.grad, want_grad) >= 0.99999


@pytest.mark.parametrize("case", ZOO)
def test_teacher_logits_are_compared_more_finely_still(case: str) -> None:
    student, teacher = ZOO[case]()
    want, want_grad = reference_with_gradient(student, teacher)
    z = student.float().requires_grad_()
    got = uld_distance(z, teacher.float())
    assert ((got.double() - want).abs() / want).max() <= 5e-5
    got.sum().backward()
    assert z.grad is not None
    assert cosine(z.grad, want_grad) >= 0.99999


@pytest.mark.parametrize(("scale", "least"), [(3.0, 0.9999), (1.0, 0.999), (0.3, 0.99)])
def test_flat_distributions(scale: float, least: float) -> None:
    """Without a peak every rank counts alike; what the grid does not know of the teacher's ranks shows."""
    student, teacher = gaussian(8, 10_000, scale=scale, seed=11), zipf(8, 30_000, seed=12)
    want, want_grad = reference_with_gradient(student, teacher)
    got = terms_of(student, teacher)
    assert ((got.distance.double() - want).abs() / want).max() <= 1e-4
    assert got.grad is not None
    assert cosine(got.grad, want_grad) >= least


def test_bfloat16_logits_with_all_their_ties() -> None:
    student, teacher = zipf(8, 10_000, seed=1).bfloat16(), zipf(8, 30_000, seed=2).bfloat16()
    want, want_grad = reference_with_gradient(student, teacher)
    got = uld_value_and_grad(student, Spectrum.from_logits(teacher))
    # Many probabilities at one level are not what a smooth curve through a bin expects.
    relative = (got.distance.double() - want).abs() / want
    assert relative.max() <= 2e-3
    assert relative.mean() <= 2e-4
    assert got.grad is not None
    assert cosine(got.grad, want_grad) >= 0.99999


def test_all_equal_probabilities() -> None:
    student, teacher = torch.zeros(4, 10_000), zipf(4, 30_000, slope=1.3)
    want = reference_distance(torch.softmax(student, -1), torch.softmax(teacher, -1))
    got = terms_of(student, teacher)
    assert ((got.distance.double() - want).abs() / want).max() <= 1e-3


def test_head_share_is_the_distance_of_the_first_ranks() -> None:
    student, teacher = zipf(4, 500, seed=1), zipf(4, 900, seed=2)
    spectrum = Spectrum.from_logits(teacher.float(), num_head=50)
    p, q = (torch.softmax(x, -1).sort(-1, descending=True).values[:, :50] for x in (student, teacher))
    got = uld_value_and_grad(student.float(), spectrum).head
    torch.testing.assert_close(got.double(), (p - q).abs().sum(-1), atol=1e-6, rtol=1e-5)
    whole = uld_value_and_grad(student.float(), Spectrum.from_logits(teacher.float(), num_head=1000))
    torch.testing.assert_close(whole.head, whole.distance)


# --- its bound ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ZOO)
@pytest.mark.parametrize("num_head", [1, 32, 256])
def test_bound_is_a_bound(case: str, num_head: int) -> None:
    student, teacher = ZOO[case]()
    want, _ = reference_with_gradient(student, teacher)
    for mantissa_bits in (1, 3, 5):
        grid = LevelGrid.below_head(num_head, mantissa_bits=mantissa_bits)
        spectrum = Spectrum.from_logits(teacher.float(), num_head=num_head, grid=grid)
        terms = uld_value_and_grad(student.float(), spectrum)
        assert terms.bound is not None
        error = (terms.distance.double() - want).abs()
        assert (error <= terms.bound).all()
        # ... and says something: never worse than the coarsest statement about the tail.
        assert (terms.bound <= 2e-5 + 2.0**-mantissa_bits).all()


def test_bound_shrinks_with_the_grid() -> None:
    student, teacher = ZOO["zipf"]()
    bounds = []
    for mantissa_bits in (2, 4, 6):
        grid = LevelGrid.below_head(64, mantissa_bits=mantissa_bits)
        spectrum = Spectrum.from_logits(teacher.float(), num_head=64, grid=grid)
        bound = uld_value_and_grad(student.float(), spectrum).bound
        assert bound is not None
        bounds.append(float(bound.mean()))
    assert bounds[0] > 3 * bounds[1] > 9 * bounds[2]


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_accumulated_in_float32(method: Method, dtype: torch.dtype) -> None:
    # 40,000 probabilities of about 1/40,000: added up in half precision they would stop at a few hundredths.
    student, teacher = gaussian(2, 40_000, scale=1.0, seed=1).to(dtype), zipf(2, 9000, seed=1).to(dtype)
    want, want_grad = reference_with_gradient(student, teacher)
    z = student.clone().requires_grad_()
    got = uld_distance(z, teacher, method=method)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=0)
    got.sum().backward()
    assert z.grad is not None
    assert z.grad.dtype == dtype
    assert cosine(z.grad, want_grad) >= 0.999


def test_a_quarter_of_a_million_small_probabilities_do_not_drift() -> None:
    student, teacher = gaussian(2, 131_072, scale=0.1, seed=1), gaussian(2, 262_144, scale=0.1, seed=2)
    want, _ = reference_with_gradient(student, teacher)
    got = uld_distance(student.float(), Spectrum.from_logits(teacher.float()))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
