"""The weights of loss terms in one optimizer step, where a recipe's ``objective.schedule`` changes them.

They are a function of the recipe and the step alone: a run that resumes has the weights of one that never stopped.
"""

from __future__ import annotations

from uld_ds.errors import UserError
from uld_ds.recipe.objective import ObjectiveSettings, WarmupSchedule


def scheduled_weights(settings: ObjectiveSettings, step: int, total_steps: int) -> dict[str, float]:
    """Compute the weights of the terms that have a schedule, by their keys.

    Args:
        settings: a recipe's ``objective``.
        step: the optimizer step, from 0.
        total_steps: optimizer steps of the whole run.
    """
    weights: dict[str, float] = {}
    for name, schedule in settings.schedule.items():
        value = getattr(settings, name)
        if isinstance(schedule, WarmupSchedule):
            weights[name] = value * min(1.0, step / warmup_steps(schedule, total_steps))
        else:
            # Both ends are met exactly.
            done = min(1.0, step / max(1, total_steps - 1))
            weights[name] = value * (1.0 - done) + schedule.to * done
    return weights


def warmup_steps(schedule: WarmupSchedule, total_steps: int) -> int:
    """Count the optimizer steps that a weight takes to rise, at least one."""
    steps = schedule.steps if schedule.steps >= 1 else schedule.steps * total_steps
    return max(1, round(steps))


def check_schedule(settings: ObjectiveSettings, total_steps: int) -> None:
    """Check that no weight would still rise when the run ends.

    Raises:
        UserError: a warm-up is longer than the run.
    """
    for name, schedule in settings.schedule.items():
        if isinstance(schedule, WarmupSchedule) and warmup_steps(schedule, total_steps) > total_steps:
            raise UserError(
                f"objective.schedule.{name}.steps",
                f"{schedule.steps:g} is more than the {total_steps} optimizer steps of the run",
                "give a share of them, e.g. 0.2, or a smaller number",
            )
