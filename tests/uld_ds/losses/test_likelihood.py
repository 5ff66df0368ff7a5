"""Likelihood matching against hand-computed values, finite differences and its own definition."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uld_ds.losses.likelihood import Divergence, likelihood_part, likelihood_term
from uld_ds.recipe import ObjectiveSettings

LOG_PROBS = st.floats(-30.0, -0.01)
DIVERGENCES = get_args(Divergence)


def term(p: float, q: float, **options: object) -> tuple[float, float]:
    found = likelihood_term(torch.tensor([math.log(p)]), torch.tensor([math.log(q)]), **options)  # type: ignore[arg-type]
    return float(found.value), float(found.slope)


def test_values_by_hand() -> None:
    # Two coins: 0.5 against 0.25.
    assert term(0.5, 0.25)[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
    assert term(0.5, 0.25, divergence="reverse_kl")[0] == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6
    )
    assert term(0.5, 0.25, divergence="total_variation")[0] == pytest.approx(0.25, rel=1e-6)
    middle = [0.375, 0.625]
    js = sum(
        0.5 * sum(x * math.log(x / m) for x, m in zip(side, middle, strict=True)) for side in ([0.5, 0.5], [0.25, 0.75])
    )
    assert term(0.5, 0.25, divergence="jensen_shannon")[0] == pytest.approx(js, rel=1e-6)
    # At temperature 2 the probabilities are their square roots.
    assert term(0.25, 0.0625, temperature=2.0)[0] == pytest.approx(term(0.5, 0.25)[0], rel=1e-6)


def test_the_slope_of_kl_by_hand() -> None:
    # d/dx of -p x - (1 - p) log(1 - e^x) at e^x = 0.25: -0.5 + 0.5 * 0.25 / 0.75.
    assert term(0.5, 0.25)[1] == pytest.approx(-0.5 + 0.5 / 3, rel=1e-6)


@given(
    p=LOG_PROBS, q=LOG_PROBS, temperature=st.sampled_from([0.5, 1.0, 100.0]), divergence=st.sampled_from(DIVERGENCES)
)
def test_zero_iff_the_probabilities_agree(p: float, q: float, temperature: float, divergence: Divergence) -> None:
    teacher, student = torch.tensor([p, p], dtype=torch.float64), torch.tensor([p, q], dtype=torch.float64)
    found = likelihood_term(teacher, student, divergence=divergence, temperature=temperature)
    assert float(found.value[0]) == pytest.approx(0, abs=1e-12)
    if abs(math.exp(p / temperature) - math.exp(q / temperature)) > 1e-4:
        assert float(found.value[1]) > 1e-9
        # Downhill leads to the teacher.
        assert math.copysign(1, float(found.slope[1])) == math.copysign(1, q - p)


@given(p=LOG_PROBS, q=LOG_PROBS, temperature=st.sampled_from([1.0, 100.0]), divergence=st.sampled_from(DIVERGENCES))
def test_the_slope_is_the_derivative(p: float, q: float, temperature: float, divergence: Divergence) -> None:
    if divergence == "total_variation" and abs(p - q) < 1e-3:
        return  # it has a kink there
    width = 1e-6
    teacher = torch.full((3,), p, dtype=torch.float64)
    student = torch.tensor([q - width, q, q + width], dtype=torch.float64)
    value, slope = likelihood_term(teacher, student, divergence=divergence, temperature=temperature)
    assert float(slope[1]) == pytest.approx(float(value[2] - value[0]) / (2 * width), rel=1e-4, abs=1e-7)


def test_certainty_stays_finite() -> None:
    value, slope = likelihood_term(torch.tensor([0.0, -1e-9, -900.0, -1.0]), torch.tensor([0.0, -900.0, 0.0, -1e-12]))
    assert torch.isfinite(value).all()
    assert slope.abs().max() < 2e4


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one value per segment"):
        likelihood_term(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"temperature must be positive"):
        likelihood_term(torch.zeros(2), torch.zeros(2), temperature=0.0)


# ---- the part of a micro-batch's loss


def test_segments_add_up_by_their_shares_and_the_recipes_weight() -> None:
    teacher, student = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    first, second = term(0.5, 0.25), term(0.25, 0.5)
    shares, settings = torch.tensor([0.75, 0.125]), ObjectiveSettings(likelihood=1.0)
    found = likelihood_part(teacher, student, shares, settings, weight=2.0)
    assert found.value.item() == pytest.approx(0.75 * first[0] + 0.125 * second[0])
    assert found.loss.item() == pytest.approx(1.5 * first[0] + 0.25 * second[0])
    assert found.slopes.tolist() == pytest.approx([1.5 * first[1], 0.25 * second[1]])
    # A weight of each: the value has none.
    each = likelihood_part(teacher, student, shares, settings, weight=torch.tensor([4.0, 0.0]))
    assert each.value.item() == found.value.item()
    assert each.loss.item() == pytest.approx(3 * first[0])
    assert each.slopes.tolist() == pytest.approx([3 * first[1], 0.0])


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_parts_slopes_are_finite_differences(divergence: Divergence) -> None:
    generator = torch.Generator().manual_seed(2)
    teacher, student = -torch.rand(2, 9, generator=generator, dtype=torch.float64) * 3 - 0.05
    shares, weight = torch.rand(2, 9, generator=generator, dtype=torch.float64)
    settings = ObjectiveSettings(likelihood=1.0, likelihood_divergence=divergence, likelihood_temperature=2.0)
    slopes, width = likelihood_part(teacher, student, shares, settings, weight=weight).slopes, 1e-6
    for segment in range(len(student)):
        ends = []
        for move in (width, -width):
            other = student.clone()
            other[segment] += move
            ends.append(likelihood_part(teacher, other, shares, settings, weight=weight).loss.item())
        assert slopes[segment].item() == pytest.approx((ends[0] - ends[1]) / (2 * width), rel=1e-5, abs=1e-9)
