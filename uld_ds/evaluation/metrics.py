"""Metrics of answers: token F1, precision, recall, exact match, accuracy, ROUGE and chrF against several references.

Definitions follow the SQuAD evaluation script (Rajpurkar et al., arXiv 1606.05250 and 1806.03822) and the scores
published with ULD (Boizard et al., arXiv 2402.12030):

- Words are those of words.py: ``published``, as SQuAD's script and ``rouge-score`` have them, or ``unicode``, which are
  the same for ASCII, and read every script.
- Of several references the best counts, for each metric by itself.
- A row without references has no answer in its text (references whose normal form is empty do not count). It is right
  in every metric when the prediction is empty, too, or says "no response", and wrong otherwise.
- ROUGE is that of ``rouge-score`` without stemming, F-measure; a score is the mean over rows, not a resampled one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from uld_ds.errors import UserError
from uld_ds.evaluation.chrf import chrf
from uld_ds.evaluation.predictions import Prediction
from uld_ds.evaluation.words import normal_form, rouge_text, rouge_tokenizer, words_of
from uld_ds.tasks.task import NO_RESPONSE, Words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BERTSCORE = "bertscore"
# Metrics that `--metrics` and tasks may name, and the scores each gives.
METRICS: dict[str, tuple[str, ...]] = {
    "accuracy": ("accuracy",),
    "f1": ("f1",),
    "precision": ("precision",),
    "recall": ("recall",),
    "em": ("em",),
    "rouge": ROUGE,
    **{name: (name,) for name in ROUGE},
    "chrf": ("chrf",),
    BERTSCORE: (BERTSCORE,),
}
DEFAULT_METRICS = ("f1", "precision", "recall", "em", "rouge")


@dataclass(frozen=True)
class Scores:
    """The scores of every row."""

    names: tuple[str, ...]
    """Names of the scores, e.g. ``rougeL``."""
    rows: np.ndarray
    """[rows, names] scores, each between 0 and 1."""

    def percentages(self) -> dict[str, float]:
        """Compute the mean of each score over the rows, in percent, two decimals."""
        return {name: round(100 * float(mean), 2) for name, mean in zip(self.names, self.rows.mean(0), strict=True)}

    def intervals(self, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, list[float]]:
        """Compute the bootstrap confidence interval of each mean, in percent, two decimals.

        Rows are drawn with replacement, all metrics of a row together (Efron's percentile interval).
        """
        means = np.stack([self.rows[drawn].mean(0) for drawn in resampled(len(self.rows), resamples, seed)])
        bounds = 100 * percentile_interval(means, confidence)
        return {name: [round(float(v), 2) for v in bounds[:, i]] for i, name in enumerate(self.names)}


def resampled(number: int, resamples: int, seed: int) -> Iterable[np.ndarray]:
    """Draw indices of ``number`` rows with replacement, [number], ``resamples`` times."""
    draw = np.random.default_rng(seed)
    return (draw.integers(0, number, number) for _ in range(resamples))


def percentile_interval(values: np.ndarray, confidence: float) -> np.ndarray:
    """Compute the two ends, [2, ...], between which ``confidence`` of the values [n, ...] lie."""
    outside = (1 - confidence) / 2
    return np.quantile(values, [outside, 1 - outside], axis=0)


def score_names(metrics: Sequence[str], key: str = "--metrics") -> tuple[str, ...]:
    """List the names of the scores that some metrics give, each once.

    Raises:
        UserError: an unknown metric, or none.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(key, f"{metric!r} is not known", f"choose among {', '.join(METRICS)}")
    if not metrics:
        raise UserError(key, "names no metric", f"choose among {', '.join(METRICS)}")
    return tuple(dict.fromkeys(name for metric in metrics for name in METRICS[metric]))


def score(
    predictions: Sequence[Prediction], metrics: Sequence[str] = DEFAULT_METRICS, *, words: Words = "unicode"
) -> Scores:
    """Score the answers of all rows.

    Args:
        predictions: Answers with their references, at least one.
        metrics: Names in METRICS.
        words: How texts are read, by all metrics but ``chrf`` and ``bertscore``, which have no words.

    Raises:
        UserError: an unknown metric, no predictions, or a metric whose package is not installed.
    """
    names = score_names(metrics)
    if not predictions:
        raise UserError("predictions", "there are none", "give at least one row")
    row_scores = [_row_scores(prediction, names, words) for prediction in predictions]
    if BERTSCORE in names:
        from uld_ds.evaluation.bertscore import bertscores

        for scores, value in zip(row_scores, bertscores(predictions, words), strict=True):
            scores[BERTSCORE] = value
    return Scores(names, np.array([[scores[name] for name in names] for scores in row_scores], np.float64))


def _row_scores(prediction: Prediction, names: Sequence[str], words: Words) -> dict[str, float]:
    said = normal_form(prediction.text, words)
    forms = {text: form for text in prediction.references if (form := normal_form(text, words))}
    if not forms:
        return dict.fromkeys(names, float(not said or NO_RESPONSE in said))
    scores: dict[str, float] = {}
    ours, theirs = words_of(said, words), [words_of(form, words) for form in forms.values()]
    if {"f1", "precision", "recall"} & set(names):
        overlaps = [_overlap(ours, reference) for reference in theirs]
        scores |= dict(zip(("f1", "precision", "recall"), map(max, zip(*overlaps, strict=True)), strict=True))
    if "em" in names:
        scores["em"] = float(ours in theirs)
    if "accuracy" in names:
        scores["accuracy"] = float(_label(said) in map(_label, forms.values()))
    rouge = [name for name in ROUGE if name in names]
    if rouge:
        right = [rouge_text(text, words) for text in forms]
        found = _rouge_scorer(tuple(rouge), words).score_multi(right, rouge_text(prediction.text, words))
        scores |= {name: found[name].fmeasure for name in rouge}
    if "chrf" in names:
        scores["chrf"] = chrf(prediction.text, list(forms))
    return scores


def _overlap(said: tuple[str, ...], reference: tuple[str, ...]) -> tuple[float, float, float]:
    """Compute F1, precision and recall of two bags of words."""
    common = sum((Counter(said) & Counter(reference)).values())
    if common == 0:
        return 0.0, 0.0, 0.0
    precision, recall = common / len(said), common / len(reference)
    return 2 * precision * recall / (precision + recall), precision, recall


def _label(text: str) -> str:
    """Return an answer's decision: its first word (yes, no, maybe)."""
    return text.split(" ", 1)[0]


@cache
def _rouge_scorer(names: tuple[str, ...], words: Words) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(names), tokenizer=rouge_tokenizer(words))


def as_references(value: Any) -> tuple[str, ...]:
    """Read references from a file's value: a text, a list of them, or how SQuAD and QED write them.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        found = [item.get("string", item.get("text")) if isinstance(item, dict) else item for item in value]
        texts = tuple(item for item in found if isinstance(item, str))
        if len(texts) == len(value):
            return texts
    raise ValueError("'answers' is neither a text nor a list of texts")
