"""A warning where so little is known of the tail of a teacher's distributions that the ULD distance means little."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from uld_ds.checkpointing.state import TrainState
from uld_ds.recipe import NamedTeacherSettings, Recipe
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.training.callbacks import TrainerCallback

log = logging.getLogger(__name__)

_MOST = 0.05
"""Share of the distance that a bound on its error may be."""


class UnknownTail(TrainerCallback):
    """A callback that warns once, after the first step whose ULD distance is too uncertain.

    Args:
        recipe: of the run.
        warn: told of it, too.
    """

    def __init__(self, recipe: Recipe, warn: Callable[[str], None] = lambda _: None) -> None:
        tops = [text for own in recipe.teachers if (text := _top_of(own)) is not None]
        self._tops = ", ".join(tops)
        self._weight = recipe.taught.uld
        self._warn = warn
        self._done = not tops or not self._weight

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Compare a step's distance with the bound on its error."""
        distance, bound = metrics["train/uld"], metrics["train/uld_error_bound"]
        if self._done or not bound > _MOST * distance:
            return
        self._done = True
        text = (
            f"{self._tops} leaves the ULD distance {distance:.3g} uncertain by up to {bound:.3g} "
            f"({bound / max(distance, 1e-12):.0%}): for objective.uld {self._weight:g} raise top, or give its weight "
            "to objective.likelihood or projection, which need no more than is told"
        )
        log.warning("%s", text)
        self._warn(text)


def _top_of(teacher: NamedTeacherSettings) -> str | None:
    """Say how many of the likeliest tokens are known of a teacher; None where its whole distributions are."""
    if teacher.source == "served" and teacher.server is not None:
        return f"{teacher.key}.server.top {teacher.server.top}"
    if teacher.source == "stored" and teacher.path is not None:
        served = SpectrumStore.open(teacher.path, key=f"{teacher.key}.path").manifest.served
        return None if served is None else f"top {served.top} of the store {teacher.key}.path"
    return None
