"""The ULD distance and its gradient against a float64 sorted reference, by hand-computed cases and by invariants."""

from __future__ import annotations

import math
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from tests.uld_ds.spectra_zoo import (
    cosine,
    gaussian,
    masked,
    one_hot,
    reference_distance,
    reference_with_gradient,
    zipf,
)
from uld_ds.level_counts import LevelGrid
from uld_ds.spectrum import Spectrum
from uld_ds.uld import UldTerms, uld_distance, uld_value_and_grad, uld_workspace

Method = Literal["exact", "linear"]
METHODS: list[Method] = ["exact", "linear"]


def logits_of(*rows: list[float]) -> Tensor:
    """Float64 logits of rows of probabilities (0 becomes -inf)."""
    return torch.tensor(rows, dtype=torch.float64).log()


def terms_of(student: Tensor, teacher: Tensor, **options: Any) -> UldTerms:
    spectrum = Spectrum.from_logits(teacher.float())
    return uld_value_and_grad(student.float(), spectrum, **options)


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


@pytest.mark.parametrize("method", METHODS)
def test_equal_probabilities_share_their_gradient(method: Method) -> None:
    # sorted: (.4 .2 .2 .2) against (.5 .25 .15 .1): signs - - + +, and the three equal ones cannot be told apart
    student = logits_of([0.2, 0.4, 0.2, 0.2]).requires_grad_()
    uld_distance(student, logits_of([0.5, 0.25, 0.15, 0.1]), method=method).backward()
    mean = 0.4 * -1 + 0.6 / 3
    want = torch.tensor([[0.2 * (1 / 3 - mean), 0.4 * (-1 - mean), 0.2 * (1 / 3 - mean), 0.2 * (1 / 3 - mean)]])
    assert student.grad is not None
    torch.testing.assert_close(student.grad, want.double(), atol=1e-7, rtol=0)


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


def test_head_share_is_the_distance_of_the_first_ranks() -> None:
    student, teacher = zipf(4, 500, seed=1), zipf(4, 900, seed=2)
    spectrum = Spectrum.from_logits(teacher.float(), num_head=50)
    p, q = (torch.softmax(x, -1).sort(-1, descending=True).values[:, :50] for x in (student, teacher))
    got = uld_value_and_grad(student.float(), spectrum).head
    torch.testing.assert_close(got.double(), (p - q).abs().sum(-1), atol=1e-6, rtol=1e-5)
    whole = uld_value_and_grad(student.float(), Spectrum.from_logits(teacher.float(), num_head=1000))
    torch.testing.assert_close(whole.head, whole.distance)


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


# --- padding, masks, bad input ------------------------------------------------------------------------------------


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


# --- temperature, precision ---------------------------------------------------------------------------------------


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


# --- the fused entry ----------------------------------------------------------------------------------------------


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
    got = terms.log_normaliser - student[torch.arange(7), target]
    torch.testing.assert_close(got, nats.detach(), atol=2e-5, rtol=1e-6)
    with pytest.raises(ValueError, match="probability_weight needs student_temperature 1"):
        uld_value_and_grad(student, spectrum, probability_weight=ce, student_temperature=2.0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_log_normaliser_does_not_drift(temperature: float) -> None:
    student = zipf(3, 262_144, slope=2.0, seed=1)
    spectrum = Spectrum.from_logits(zipf(3, 900, seed=2).float())
    got = uld_value_and_grad(student.float(), spectrum, student_temperature=temperature, want_grad=False)
    want = torch.logsumexp(student / temperature, -1)
    torch.testing.assert_close(got.log_normaliser.double(), want, atol=2e-6, rtol=0)


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


def test_no_rows_is_no_error() -> None:
    student = torch.zeros(0, 70, requires_grad=True)
    distance = uld_distance(student, torch.zeros(0, 90))
    assert distance.shape == (0,)
    distance.sum().backward()
    assert student.grad is not None and student.grad.shape == (0, 70)


def test_backward_can_run_twice_and_scales_by_row() -> None:
    z = zipf(3, 500, seed=1).float().requires_grad_()
    distance = uld_distance(z, zipf(3, 600, seed=2).float())
    (once,) = torch.autograd.grad(distance.sum(), z, retain_graph=True)
    weights = torch.tensor([0.0, 2.0, -1.0])
    (again,) = torch.autograd.grad((distance * weights).sum(), z)
    torch.testing.assert_close(again, once * weights[:, None])


@pytest.mark.parametrize("student_scale", [0.0, -5.0, -20.0, -45.0, -80.0])
def test_log_normaliser_does_not_depend_on_the_scale(student_scale: float) -> None:
    # Scaled by e^-20, the smallest probabilities lie below the lowest level: their mass must not be missed.
    torch.manual_seed(0)
    z, spectrum = torch.randn(8, 400), Spectrum.from_logits(torch.randn(8, 600))
    terms = uld_value_and_grad(z, spectrum, student_log_scale=torch.full((8,), student_scale))
    torch.testing.assert_close(terms.log_normaliser, z.logsumexp(1), rtol=0, atol=2e-6)
