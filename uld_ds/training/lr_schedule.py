"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from uld_ds.recipe import ScheduleSettings


def learning_rate_factor(schedule: ScheduleSettings, total_steps: int) -> Callable[[int], float]:
    """Make the function from a step, counted from 0, to its learning rate as a share of the peak.

    Warm-up rises to the peak over the first ``warmup`` share of all steps: linearly, or along a half cosine for
    ``one_cycle`` (as torch's OneCycleLR, whose start is 1/25 of the peak). Then the named shape falls to ``final``.
    """
    warmup_steps = round(schedule.warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            share = (step + 1) / (warmup_steps + 1)
            return share if schedule.kind != "one_cycle" else 0.04 + 0.96 * (1 - math.cos(math.pi * share)) / 2
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if schedule.kind == "constant":
            return 1.0
        falling = 1 - done if schedule.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
        return schedule.final + (1 - schedule.final) * falling

    return factor
