"""The Ray actor that scores texts with an inference engine in its own process: a teacher without a server.

As ``rollout_actor``, it may run in another Python than the workers: it imports the standard library, NumPy and Ray,
and plain values go in and out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from uld_ds.workers.actor_process import log_to, plainly

log = logging.getLogger(__name__)

Text = tuple[np.ndarray, np.ndarray]
"""[n] int32 token ids of a text, and [a] int32 positions in it that are asked about, each from 1 on."""
Scored = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of each position: [a] float32 natural log-probability of the token that stands there, [a, k] int32 ids of the
likeliest tokens and [a, k] float32 their log-probabilities, the likeliest first."""


class Scorer(Protocol):
    """What an actor scores with."""

    version: str
    """Version of the engine."""

    def score(self, texts: Sequence[Text]) -> list[Scored]:
        """Score texts, all of them together."""


class ScoringActor:
    """An engine that scores texts, started when something is first asked of it.

    Args:
        make: Makes the engine; called in the actor's process.
        log_file: File for the log of this process.
    """

    def __init__(self, make: Callable[[], Scorer], log_file: str | None = None) -> None:
        log_to(log_file)
        self._make = make
        self._scorer: Scorer | None = None

    def process(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def version(self) -> str:
        """Return the version of the engine, which is started if it was not."""
        return self._started().version

    def score(self, texts: Sequence[Text]) -> list[Scored]:
        """Score texts, all of them together."""
        scorer = self._started()
        with plainly("texts cannot be scored"):
            return scorer.score(texts)

    def _started(self) -> Scorer:
        if self._scorer is None:
            with plainly("the engine does not start"):
                self._scorer = self._make()
            log.info("process %d scores with version %s", os.getpid(), self._scorer.version)
        return self._scorer
