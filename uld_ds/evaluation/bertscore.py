"""The metric BERTScore, which needs a package and a language model of its own: ``pip install 'uld-ds[bertscore]'``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uld_ds.errors import UserError

if TYPE_CHECKING:
    from uld_ds.evaluation.predictions import Prediction
    from uld_ds.tasks.task import Words


def bertscores(predictions: Sequence[Prediction], words: Words) -> list[float]:
    """Compute the BERTScore F1 of each row's answer; of several references the best counts.

    (Zhang et al., arXiv 1904.09675; English, rescaled to a baseline.)

    It reads text as it is; ``words`` says which rows have no answer. An answer without words is 0, as is one whose
    references have none: the package cannot read an empty text.

    Raises:
        UserError: the package is not installed.
    """
    from uld_ds.evaluation.predictions import is_unanswerable
    from uld_ds.evaluation.words import normal_form

    try:
        from bert_score import score
    except ImportError as error:
        raise UserError("--metrics", "bertscore needs a package", "pip install 'uld-ds[bertscore]'") from error
    unanswerable = [is_unanswerable(row, words) for row in predictions]
    scores = [float(unanswerable[n] and not normal_form(row.text, words)) for n, row in enumerate(predictions)]
    worded = [[text for text in row.references if text.strip()] for row in predictions]
    places = [n for n, row in enumerate(predictions) if not unanswerable[n] and row.text.strip() and worded[n]]
    if places:
        texts = [predictions[place].text for place in places]
        references = [worded[place] for place in places]
        _, _, found = score(texts, references, lang="en", rescale_with_baseline=True)
        for place, value in zip(places, found.tolist(), strict=True):
            scores[place] = value
    return scores
