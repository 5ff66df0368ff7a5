"""A run's metrics among those that Ray exports: Prometheus reads them from every node's metrics port."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ray.util.metrics import Gauge

PREFIX = "uld_ds"
_TAG = "run"


class RayGauges:
    """The latest value of every metric as a gauge, e.g. ``ray_uld_ds_train_loss{run="demo"}`` in Prometheus.

    Args:
        run: name of the run, a tag of every gauge.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, step: int, metrics: Mapping[str, float]) -> None:
        """Set the gauges to the values of one global step; those that are not finite are left out."""
        for name, value in {"step": float(step), **metrics}.items():
            if math.isfinite(value):
                self._gauge(name).set(value)

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            gauge = Gauge(gauge_name(name), description=f"uld-ds: {name}, latest", tag_keys=(_TAG,))
            gauge.set_default_tags({_TAG: self._run})
            self._gauges[name] = gauge
        return self._gauges[name]


def gauge_name(metric: str) -> str:
    """Turn a metric's name into one that Prometheus takes.

    >>> gauge_name("train/bits_per_byte")
    'uld_ds_train_bits_per_byte'
    """
    return f"{PREFIX}_{re.sub(r'[^A-Za-z0-9_]', '_', metric)}"
