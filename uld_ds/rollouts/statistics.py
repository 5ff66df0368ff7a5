"""Statistics of a round of rollouts: what its answers are like, and when a person should look at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from uld_ds.generation.sampling import Sampled
from uld_ds.rollouts.summary import RoundSummary

NGRAM = 4
"""Number of tokens in the n-grams whose repetition is counted."""
LEAST_ENDED = 0.05
MOST_REPEATED = 0.5
_MOST_REASONS = 8
_NO_REASON, _OTHER_REASONS = "not usable", "other reasons"


class RoundAnswer(Protocol):
    """One answer of a round, as statistics read it."""

    @property
    def sampled(self) -> Sampled:
        """Tokens as they were sampled."""
        ...

    @property
    def row(self) -> Mapping[str, Any] | None:
        """Prepared row that training reads; None where the answer cannot be used."""
        ...

    @property
    def problem(self) -> str:
        """Why there is no row; empty where there is one."""
        ...


def summary_of(
    number: int,
    step: int,
    answers: Sequence[RoundAnswer],
    prompt_lengths: Sequence[int],
    seconds: Mapping[str, float] | None = None,
) -> RoundSummary:
    """Compute the facts of a round from all its answers, the same on every rank.

    Args:
        number: Number of the round, from 0.
        step: Optimizer steps done when its first answer is trained on: the same of a run that resumes in the round.
        answers: All answers of the round, usable or not.
        prompt_lengths: Tokens of the prompt of each answer.
        seconds: Seconds by phase, on the slowest rank.
    """
    usable = [
        (answer, prompt) for answer, prompt in zip(answers, prompt_lengths, strict=True) if answer.row is not None
    ]
    lengths = [len(answer.sampled.ids) for answer in answers]
    num_bytes = sum(bytes_of(answer) for answer, _ in usable)
    nats = sum(student_nats(answer, prompt) for answer, prompt in usable)
    sampling = (seconds or {}).get("sampling", 0.0)
    return RoundSummary(
        round=number,
        step=step,
        answers=len(answers),
        usable=len(usable),
        left_out=_reasons(answers),
        ended=_mean([answer.sampled.ended for answer in answers]),
        tokens=_mean(lengths),
        bytes=num_bytes / len(usable) if usable else 0.0,
        distinct=len({_key(answer.sampled.ids) for answer in answers}) / len(answers) if answers else 0.0,
        repeated=_mean([repeated_share(answer.sampled.ids) for answer in answers]),
        student_nats_per_byte=nats / num_bytes if num_bytes else float("nan"),
        seconds=dict(seconds or {}),
        tokens_per_second=sum(lengths) / sampling if sampling > 0 else 0.0,
    )


def bytes_of(answer: RoundAnswer) -> int:
    """Count the UTF-8 bytes of a usable answer that are trained on."""
    assert answer.row is not None, "the answer is usable"
    return int(answer.row["answer_bytes"])


def student_nats(answer: RoundAnswer, prompt_length: int) -> float:
    """Compute the negative log-probability of a usable answer under the student that sampled it.

    It is of the tokens that a teacher judges, too: those in a segment. What was cut off is in none.

    Args:
        answer: The answer.
        prompt_length: Tokens of its prompt, which the row begins with.
    """
    row, sampled = answer.row, answer.sampled
    assert row is not None, "the answer is usable"
    kept = np.asarray(row["student_ids"])[prompt_length:]
    assert np.array_equal(kept, sampled.ids[: len(kept)]), "a row keeps the tokens as they were sampled"
    places = np.asarray(row["student_answers"], np.int64) - prompt_length
    in_segment = np.zeros(len(places) + 1, np.int64)
    for name in (name for name in row if name.rpartition(".")[2] == "student_segments"):
        np.add.at(in_segment, np.asarray(row[name], np.int64), 1)
        np.add.at(in_segment, np.asarray(row[name.removesuffix("s") + "_stops"], np.int64), -1)
    judged = places[np.cumsum(in_segment)[:-1] > 0]
    return -float(sampled.log_probs[judged].sum(dtype=np.float64))


def repeated_share(ids: np.ndarray, n: int = NGRAM) -> float:
    """Compute the share of n-grams of tokens [T] that have occurred before among them; 0 of fewer than n tokens."""
    if len(ids) < n:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(ids, n)
    return 1 - len(np.unique(grams, axis=0)) / len(grams)


def collapse_of(summary: RoundSummary) -> dict[str, str]:
    """Say, by kind, in which ways the answers of a round have collapsed; empty where they have not."""
    if not summary.answers:
        return {}
    said = {}
    if summary.ended < LEAST_ENDED:
        said["ended"] = (
            f"round {summary.round} (step {summary.step}): the student ended only {summary.ended:.1%} of its own "
            f"answers: it does not stop any more, or rollouts.max_new_tokens is shorter than what it has to say"
        )
    if summary.repeated > MOST_REPEATED:
        said["repeated"] = (
            f"round {summary.round} (step {summary.step}): the student repeats itself, {summary.repeated:.0%} of the "
            f"{NGRAM}-grams of its own answers have occurred in them before"
        )
    return said


class CollapseWatch:
    """A watch over the rounds of a run, which speaks up when answers collapse, and not again while they stay so."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def news(self, collapse: Mapping[str, str]) -> list[str]:
        """Return what is new of the ways in which a round's answers have collapsed, from ``collapse_of``."""
        new = [text for kind, text in collapse.items() if kind not in self._known]
        self._known = set(collapse)
        return new


def _reasons(answers: Sequence[RoundAnswer]) -> dict[str, int]:
    """Count the answers that cannot be used by reason, the most frequent first; rare ones together."""
    counts = Counter(answer.problem or _NO_REASON for answer in answers if answer.row is None).most_common()
    rest = sum(number for _, number in counts[_MOST_REASONS:])
    return dict(counts[:_MOST_REASONS]) | ({_OTHER_REASONS: rest} if rest else {})


def _key(ids: np.ndarray) -> bytes:
    return np.ascontiguousarray(ids, np.int32).tobytes()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
