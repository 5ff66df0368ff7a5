"""Answers to be scored."""

from __future__ import annotations

from dataclasses import dataclass

from uld_ds.evaluation.words import normal_form
from uld_ds.tasks.task import Words


@dataclass(frozen=True)
class Prediction:
    """An answer to be scored, and those that count as right; none where there is nothing to answer."""

    text: str
    references: tuple[str, ...]


def is_unanswerable(prediction: Prediction, words: Words = "unicode") -> bool:
    """Tell whether a prediction has no reference with anything in its normal form."""
    return not any(normal_form(reference, words) for reference in prediction.references)
