"""What is said of several teachers together: sums by weight, and a mean of what is no part of the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.micro_batches import micro_batch
from uld_ds.batches import JudgedBatch
from uld_ds.losses.normalization import RowWeights, step_weights
from uld_ds.training.teaching import Teaching, Teachings


class Said:
    """An objective whose parts are figures of its own, weighed as its rows are."""

    optional_parts = ("likelihood",)

    def __init__(self, value: float) -> None:
        self._value = value

    def __call__(
        self, hidden: Tensor, head: Any, judged: JudgedBatch, said: Any, weights: RowWeights
    ) -> tuple[Tensor, dict[str, Tensor]]:
        answers, segments = weights.answers.sum(), weights.segments.sum()
        parts = dict.fromkeys(("uld", "likelihood", "teacher_entropy"), self._value * segments)
        nats = torch.ones(len(hidden)) * self._value
        return 10 * answers + self._value * segments, {**parts, "ce": answers, "token_nats": nats}


def both(*weights: float, combine: Any = "sum") -> tuple[float, dict[str, float]]:
    """Loss and parts of a micro-batch of two examples whose two teachers say 1 and 3 of every segment."""
    objectives: list[Any] = [Said(1.0), Said(3.0)]
    source: Any = None
    teachers = zip(("a", "b"), objectives, weights, strict=True)
    teachings = Teachings(tuple(Teaching(name, source, own, weight) for name, own, weight in teachers), combine)
    one = micro_batch([(1.0, 2, 1), (1.0, 4, 3)])
    one = type(one)(one.examples, one.student, one.pairs * 2, one.example_weight, one.answer_bytes)
    (row_weights,) = step_weights([one], "token", lambda values: values)
    said: Any = {0: None, 1: None}
    loss, parts = teachings.loss(torch.zeros(6, 2), None, one, said, row_weights)  # type: ignore[arg-type]
    return float(loss), {name: float(value) for name, value in parts.items() if name != "token_nats"}


def test_terms_are_summed_by_weight_and_cross_entropy_is_counted_once() -> None:
    loss, parts = both(2.0, 0.5)
    assert loss == pytest.approx(10 + 2 * 1 + 0.5 * 3)
    assert parts["ce"] == pytest.approx(1)
    assert parts["uld"] == pytest.approx(2 * 1 + 0.5 * 3)
    assert (parts["a/uld"], parts["b/uld"]) == pytest.approx((1, 3))
    assert (parts["a/likelihood"], parts["b/likelihood"]) == pytest.approx((1, 3))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (2.0, 0.5)])
def test_the_entropy_of_teachers_is_a_mean_whatever_the_weights_add_up_to(weights: tuple[float, float]) -> None:
    _, parts = both(*weights)
    assert parts["teacher_entropy"] == pytest.approx((weights[0] * 1 + weights[1] * 3) / sum(weights))


def test_teachers_that_judge_rows_of_their_own_have_the_entropy_of_all_rows() -> None:
    # Each pass is over segments whose weights add up to a share of 1; the recipe's weights are no part of it.
    _, parts = both(2.0, 0.5, combine="route")
    assert parts["teacher_entropy"] == pytest.approx(1 + 3)
