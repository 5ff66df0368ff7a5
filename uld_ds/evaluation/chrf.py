"""The metric chrF: character n-grams, which need no words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF


def chrf(text: str, references: Sequence[str]) -> float:
    """Compute an answer's chrF2 as sacrebleu does by default, between 0 and 1; of several references the best counts.

    (Popović, WMT 2015: n-grams of 1 to 6 characters, without spaces, recall twice as important; case counts.)
    """
    return float(_scorer().sentence_score(text, list(references)).score) / 100


@cache
def _scorer() -> CHRF:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
