"""What an inference engine says about positions of a text: the interface of an engine, and the check of its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# A log-probability may be so much above 0, and probabilities may sum to so much above 1, by rounding: float32's own is
# below 1e-5, and what engines do to logits in bf16 is done before they are normalized.
_ROUNDING = 1e-3
# So much more than all other tokens can hold may be left for them.
_LEFT_OVER = 1e-2


class BadReplyError(ValueError):
    """A reply of an engine that is not what it was asked for; its message says what is wrong."""


class NotLogProbsError(BadReplyError):
    """A reply whose numbers cannot be log-probabilities, e.g. logits."""


@dataclass(frozen=True)
class Scores:
    """What an engine says about n positions of one text, in order: the tokens that might stand there, and that does."""

    log_probs: np.ndarray
    """[n] float32: natural log-probability of the token that stands there."""
    ids: np.ndarray
    """[n, k] int64: the likeliest tokens, the likeliest first; of equally likely ones the lower id."""
    top: np.ndarray
    """[n, k] float32: their natural log-probabilities."""


class Engine(Protocol):
    """The interface that a served teacher needs of whatever runs the model."""

    def score(self, ids: Sequence[int], positions: np.ndarray) -> Future[Scores]:
        """Begin to score a text; the future raises what went wrong.

        Args:
            ids: the text's token ids; nothing is added to them.
            positions: positions in it that are asked about, each from 1 on.
        """
        ...

    def close(self) -> None:
        """Let go of the engine; what is under way is given up."""
        ...


class Api(Protocol):
    """The interface of an engine's protocol over HTTP: how it is asked, and how its replies are read."""

    title: str
    """What people call the engine."""
    path: str
    """Path below the server's URL that texts are scored at."""
    top_flag: str | None
    """Flag of the server that bounds how many tokens may be asked for; None where nothing does."""

    def request(
        self, model: str, ids: Sequence[int], top: int, sampling: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build the request that scores a text.

        Args:
            model: the server's name of the model.
            ids: the text's token ids.
            top: likeliest tokens to tell at each position.
            sampling: options of sampling, which must not touch what is said about a prompt.
        """
        ...

    def read(self, reply: Any, ids: Sequence[int], positions: np.ndarray, top: int, vocab_size: int) -> Scores:
        """Read a reply, and check it.

        Args:
            reply: the reply's JSON.
            ids: the text's token ids.
            positions: positions in it that are asked about.
            top: likeliest tokens that were asked for.
            vocab_size: ids that the model knows.

        Raises:
            BadReplyError: it is not what was asked for.
        """
        ...


def checked(log_probs: np.ndarray, ids: np.ndarray, top: np.ndarray, positions: np.ndarray, vocab_size: int) -> Scores:
    """Check scores as an engine gave them, and put each row's tokens in order.

    Args:
        log_probs: [n] of the tokens that stand there.
        ids: [n, k] the likeliest tokens, in any order.
        top: [n, k] their log-probabilities.
        positions: [n] places in the text, for messages.
        vocab_size: ids that the model knows.

    Raises:
        BadReplyError: a value is no log-probability, or an id no token of the model, or twice in a row.
    """
    values = np.concatenate([log_probs[:, None], top], axis=1)  # [n, 1 + k]
    _refuse(np.isnan(values).any(1), positions, "is not a number")
    _refuse((values > _ROUNDING).any(1), positions, "is above 0", NotLogProbsError)
    sums = np.exp(np.minimum(top, 0).astype(np.float64)).sum(1)
    _refuse(sums > 1 + _ROUNDING, positions, "makes probabilities sum to more than 1", NotLogProbsError)
    left_over = _left_over(top, vocab_size) > _LEFT_OVER
    _refuse(left_over, positions, "leaves more for other tokens than they can hold", NotLogProbsError)
    _refuse(((ids < 0) | (ids >= vocab_size)).any(1), positions, f"is about an id that is none of {vocab_size}")
    in_order = np.sort(ids, axis=1)
    _refuse((in_order[:, 1:] == in_order[:, :-1]).any(1), positions, "is about a token that is there twice")
    order = np.lexsort((ids, -top), axis=1)
    top = np.take_along_axis(top, order, 1)
    return Scores(np.minimum(log_probs, 0), np.take_along_axis(ids, order, 1), np.minimum(top, 0))


def _left_over(top: np.ndarray, vocab_size: int) -> np.ndarray:
    """Compute the mass that is left for other tokens, [n], beyond what they hold if all are as likely as the last."""
    p = np.exp(top.astype(np.float64))
    known = (p > 0).sum(1)
    least = np.where(p > 0, p, np.inf).min(1, initial=np.inf)
    return 1 - p.sum(1) - np.where(known > 0, (vocab_size - known) * np.where(known > 0, least, 0.0), 0.0)


def _refuse(rows: Any, positions: np.ndarray, what: str, kind: type[BadReplyError] = BadReplyError) -> None:
    if rows.any():
        raise kind(f"a log-probability at token {int(positions[np.argmax(rows)])} {what}")


def check_length(found: int, ids: Sequence[int], what: str) -> None:
    """Check that a reply has an entry for each token of its text.

    Raises:
        BadReplyError: it has not.
    """
    if found != len(ids):
        raise BadReplyError(f"it has {found} {what} for {len(ids)} tokens")
