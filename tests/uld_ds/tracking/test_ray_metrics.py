"""Metrics under names that Prometheus takes, with the run's name, one gauge each."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from uld_ds.tracking import ray_metrics
from uld_ds.tracking.ray_metrics import RayGauges, gauge_name


class Recorded:
    """Stands where Ray's gauge is: what leaves the process is Ray's business, what it is told is ours."""

    told: ClassVar[list[Any]] = []

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.tags = name, tag_keys

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tags)
        self.told.append(tags)

    def set(self, value: float) -> None:
        self.told.append((self.name, value))


def test_latest_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_metrics, "Gauge", Recorded)
    gauges = RayGauges("demo")
    gauges.set(1, {"train/loss": 3.0, "train/uld_error_bound": float("nan")})
    gauges.set(2, {"train/loss": 2.5})
    assert Recorded.told == [
        {"run": "demo"},
        ("uld_ds_step", 1.0),
        {"run": "demo"},
        ("uld_ds_train_loss", 3.0),
        ("uld_ds_step", 2.0),
        ("uld_ds_train_loss", 2.5),
    ]


def test_names_and_a_real_gauge() -> None:
    assert gauge_name("peak_memory_bytes/largest-rank") == "uld_ds_peak_memory_bytes_largest_rank"
    RayGauges("demo").set(1, {"seconds/total": 1.0})  # without a cluster nobody hears it
