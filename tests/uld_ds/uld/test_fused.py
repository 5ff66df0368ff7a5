"""The ULD loss's fused entry: distance, gradient and cross-entropy at once, the same in any chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.spectra_zoo import zipf
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.uld.distance import UldTerms, uld_distance, uld_value_and_grad, uld_workspace


def test_fused_entry_equals_autograd() -> None:
    student, teacher = zipf(7, 3000, seed=1).float(), zipf(7, 5000, seed=2).float()
    spectrum = Spectrum.from_logits(teacher)
    weight = torch.linspace(0.1, 2.0, 7)
    z = student.clone().requires_grad_()
    distance = uld_distance(z, spectrum)
    (distance * weight).sum().backward()
    terms = uld_value_and_grad(student, spectrum, weight=weight)
    torch.testing.assert_close(terms.distance, distance.detach())
    torch.testing.assert_close(terms.grad, z.grad)


def test_fused_entry_adds_cross_entropy_for_free() -> None:
    student, teacher = zipf(7, 3000, seed=1).float(), zipf(7, 5000, seed=2).float()
    target = torch.arange(7) * 31
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 1])  # the third row has no segment: cross-entropy only
    spectrum = Spectrum.from_logits(teacher)
    ce, uld = torch.linspace(0.5, 1.0, 7), torch.linspace(1.5, 0.2, 7)
    z = student.clone().requires_grad_()
    nats = F.cross_entropy(z, target, reduction="none")
    ((nats * ce) + uld * uld_distance(z, spectrum, mask=mask)).sum().backward()

    terms = uld_value_and_grad(student, spectrum, mask=mask, weight=uld, probability_weight=ce)
    assert terms.grad is not None
    terms.grad[torch.arange(7), target] -= ce
    torch.testing.assert_close(terms.grad, z.grad, atol=1e-7, rtol=1e-4)
    got = terms.log_normalizer - student[torch.arange(7), target]
    torch.testing.assert_close(got, nats.detach(), atol=2e-5, rtol=1e-6)
    with pytest.raises(ValueError, match="probability_weight needs student_temperature 1"):
        uld_value_and_grad(student, spectrum, probability_weight=ce, student_temperature=2.0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_log_normalizer_does_not_drift(temperature: float) -> None:
    student = zipf(3, 262_144, slope=2.0, seed=1)
    spectrum = Spectrum.from_logits(zipf(3, 900, seed=2).float())
    got = uld_value_and_grad(student.float(), spectrum, student_temperature=temperature, want_grad=False)
    want = torch.logsumexp(student / temperature, -1)
    torch.testing.assert_close(got.log_normalizer.double(), want, atol=2e-6, rtol=0)


def test_cross_entropy_for_free_beside_scaled_spectra() -> None:
    student, teacher = zipf(3, 800, seed=1).float(), zipf(3, 900, seed=2).float()
    a, b = torch.tensor([-0.5, -4.0, 0.0]), torch.tensor([-2.0, -0.1, 0.0])
    spectrum = Spectrum.from_logits(teacher).shift(b)
    both = uld_value_and_grad(student, spectrum, student_log_scale=a, probability_weight=torch.ones(3)).grad
    one = uld_value_and_grad(student, spectrum, student_log_scale=a).grad
    assert both is not None and one is not None
    torch.testing.assert_close(both - one, torch.softmax(student, -1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_can_be_written_or_added_anywhere(dtype: torch.dtype) -> None:
    student, teacher = zipf(5, 700, seed=1).float(), zipf(5, 900, seed=2).float()
    spectrum = Spectrum.from_logits(teacher)
    want = uld_value_and_grad(student, spectrum).grad
    assert want is not None
    out = torch.full((5, 700), 7.0, dtype=dtype)
    got = uld_value_and_grad(student, spectrum, out=out)
    assert got.grad is out
    torch.testing.assert_close(out, want.to(dtype))
    uld_value_and_grad(student, spectrum, out=out, accumulate=True)
    torch.testing.assert_close(out, (2 * want).to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 7, 100])
def test_chunks_do_not_change_anything(chunk_rows: int) -> None:
    student, teacher = zipf(7, 700, seed=1).float(), zipf(7, 900, seed=2).float()
    student[3] = -math.inf
    spectrum = Spectrum.from_logits(teacher, chunk_rows=chunk_rows).shift(torch.linspace(-1, 0, 7))
    whole = uld_value_and_grad(student, Spectrum.from_logits(teacher).shift(torch.linspace(-1, 0, 7)))
    work = uld_workspace(student, spectrum, chunk_rows=chunk_rows)
    for _ in range(2):
        parts = uld_value_and_grad(student, spectrum, workspace=work)
        for name, a, b in zip(UldTerms._fields, parts, whole, strict=True):
            torch.testing.assert_close(a, b, msg=name, equal_nan=True)


def test_a_workspace_of_another_shape_is_refused() -> None:
    student, teacher = zipf(2, 70, seed=1).float(), zipf(2, 90, seed=2).float()
    spectrum = Spectrum.from_logits(teacher)
    with pytest.raises(ValueError, match="workspace was made for"):
        uld_value_and_grad(student, spectrum, workspace=uld_workspace(student[:, :60], spectrum))


@pytest.mark.parametrize("student_scale", [0.0, -5.0, -20.0, -45.0, -80.0])
def test_log_normalizer_does_not_depend_on_the_scale(student_scale: float) -> None:
    # Scaled by e^-20, the smallest probabilities lie below the lowest level: their mass must not be missed.
    torch.manual_seed(0)
    z, spectrum = torch.randn(8, 400), Spectrum.from_logits(torch.randn(8, 600))
    terms = uld_value_and_grad(z, spectrum, student_log_scale=torch.full((8,), student_scale))
    torch.testing.assert_close(terms.log_normalizer, z.logsumexp(1), rtol=0, atol=2e-6)
