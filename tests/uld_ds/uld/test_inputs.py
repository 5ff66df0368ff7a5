"""What the ULD distance is given: padding, masks, impossible tokens, nothing at all, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.spectra_zoo import masked, zipf
from tests.helpers.uld_methods import METHODS, Method
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.uld.distance import uld_distance


@pytest.mark.parametrize("method", METHODS)
def test_padding_rows_have_no_distance_and_no_gradient(method: Method) -> None:
    student, teacher = zipf(5, 400, seed=1).float(), zipf(5, 600, seed=2).float()
    student[1] = -math.inf
    teacher[2] = -math.inf
    mask = torch.tensor([True, True, True, False, True])
    z = student.clone().requires_grad_()
    distance = uld_distance(z, teacher, method=method, mask=mask)
    assert (distance == 0).tolist() == [False, True, True, True, False]
    distance.sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert (z.grad == 0).all(dim=1).tolist() == [False, True, True, True, False]
    alone = uld_distance(student[[0, 4]], teacher[[0, 4]], method=method)
    torch.testing.assert_close(distance[[0, 4]], alone)


@pytest.mark.parametrize("method", METHODS)
def test_impossible_tokens_get_no_gradient(method: Method) -> None:
    student = masked(zipf(3, 900, seed=1), every=4).float().requires_grad_()
    uld_distance(student, zipf(3, 700, seed=2).float(), method=method).sum().backward()
    assert student.grad is not None
    assert (student.grad[:, ::4] == 0).all()
    assert (student.grad[:, 1::4] != 0).all()


def test_no_rows_is_no_error() -> None:
    student = torch.zeros(0, 70, requires_grad=True)
    distance = uld_distance(student, torch.zeros(0, 90))
    assert distance.shape == (0,)
    distance.sum().backward()
    assert student.grad is not None and student.grad.shape == (0, 70)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_bad_row_is_named(method: Method, bad: float, side: str) -> None:
    student, teacher = zipf(6, 300, seed=1).float(), zipf(6, 300, seed=2).float()
    student[1] = -math.inf  # padding is no excuse to overlook the other row, nor a fault itself
    (student if side == "student" else teacher)[4, 77] = bad
    with pytest.raises(ValueError, match=f"{side}.*row 4 holds NaN or"):
        uld_distance(student, teacher, method=method)


def test_wrong_use_is_refused() -> None:
    student, teacher = torch.zeros(3, 8), torch.zeros(4, 9)
    with pytest.raises(ValueError, match="3 rows, teacher has 4"):
        uld_distance(student, teacher)
    with pytest.raises(ValueError, match=r"student_logits must have shape \[N, V\]"):
        uld_distance(torch.zeros(8), teacher)
    with pytest.raises(ValueError, match=r"teacher logits must have shape"):
        uld_distance(student, torch.zeros(3, 0))
    with pytest.raises(ValueError, match="must be floating point"):
        uld_distance(torch.zeros(4, 8, dtype=torch.long), teacher)
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="student_temperature must be a finite number > 0"):
            uld_distance(student, student, student_temperature=temperature)
    with pytest.raises(ValueError, match="teacher_temperature"):
        uld_distance(student, student, teacher_temperature=-2.0)
    with pytest.raises(ValueError, match='"linear" or "exact"'):
        uld_distance(student, student, method="sorted")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask must have shape \[3\]"):
        uld_distance(student, student, mask=torch.ones(2))
    with pytest.raises(ValueError, match=r"made at 2\.0"):
        uld_distance(student, Spectrum.from_logits(student, temperature=2.0), teacher_temperature=3.0)
