"""An answer that is scored, and the normal form in which texts are compared."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

_ARTICLES = re.compile(r"\b(a|an|the)\b")


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Prediction:
    """An answer, and those that count as right; none where there is nothing to answer."""

    text: str
    references: tuple[str, ...]


def normalized(text: str) -> str:
    """As the SQuAD script has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def is_unanswerable(prediction: Prediction) -> bool:
    """Whether no reference says anything."""
    return not any(normalized(reference) for reference in prediction.references)
