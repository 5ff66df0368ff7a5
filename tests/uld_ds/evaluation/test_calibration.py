"""Calibration against cases that can be counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from uld_ds.evaluation.calibration import Calibration
from uld_ds.utils.distributed import Ranks

ALONE = Ranks(0, 1)


def nats(*p: float) -> torch.Tensor:
    return torch.tensor([math.log(value) for value in p])


def test_counted_by_hand() -> None:
    calibration = Calibration(torch.device("cpu"))
    # Sure of 0.85 twice, once rightly; of 0.3 once, wrongly; the last one is an end of turn and does not count.
    calibration.add(nats(0.85, 0.1, 0.2, 0.9), nats(0.85, 0.85, 0.3, 0.9), torch.tensor([1, 1, 1, 0]))
    found = calibration.to_json(ALONE)
    assert found is not None
    low, high = found["bins"]
    assert (low["tokens"], low["accuracy"], high["tokens"], high["accuracy"]) == (1, 0.0, 2, 0.5)
    assert low["confidence"] == pytest.approx(0.3)
    assert high["confidence"] == pytest.approx(0.85)
    assert found["tokens"] == 3
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["error"] == pytest.approx(1 / 3 * 0.3 + 2 / 3 * 0.35)


def test_certainty_is_in_the_last_bin_and_what_is_unknown_in_none() -> None:
    calibration = Calibration(torch.device("cpu"))
    calibration.add(torch.zeros(2), torch.tensor([0.0, float("nan")]), torch.ones(2))
    found = calibration.to_json(ALONE)
    assert found is not None
    assert found["bins"] == [{"tokens": 1, "confidence": 1.0, "accuracy": 1.0}]
    assert Calibration(torch.device("cpu")).to_json(ALONE) is None
