"""Answers to be scored, and the normal form in which texts are compared."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Prediction:
    """An answer to be scored, and those that count as right; none where there is nothing to answer."""

    text: str
    references: tuple[str, ...]


def normalized(text: str) -> str:
    """Normalize a text as the SQuAD script does: lower case, without ASCII punctuation, then without articles."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def is_unanswerable(prediction: Prediction) -> bool:
    """Tell whether a prediction has no reference with words in its normal form."""
    return not any(normalized(reference) for reference in prediction.references)
