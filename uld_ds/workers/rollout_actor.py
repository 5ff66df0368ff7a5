"""The Ray actor that samples answers beside the workers: which weights it has, and what it is asked.

Only the standard library, NumPy and Ray are imported here: an actor may run in another Python than the workers
(``rollouts.actors.python``), with other versions of everything else. For the same reason plain values go in and out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from uld_ds.workers.actor_process import log_to, plainly

log = logging.getLogger(__name__)

Prompt = tuple[int, np.ndarray]
"""Seed of an answer's draws (below 2**63), and [n] int32 token ids of its prompt."""
Answer = tuple[np.ndarray, np.ndarray, bool]
"""[T] int32 token ids, [T] float32 natural log-probabilities under the model's own distribution, whether it ended."""


class ActorEngine(Protocol):
    """What an actor samples with."""

    def load(self, folder: str) -> None:
        """Take the weights of a folder in Hugging Face layout, in the place of those that it has."""

    def sample(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Sample one answer to each prompt, all of them together."""


class RolloutActor:
    """An engine that samples with the weights that each call names: an actor that was lost and made anew knows none.

    Args:
        make: Makes the engine; called in the actor's process, when the first weights come.
        log_file: File for the log of this process.
    """

    def __init__(self, make: Callable[[], ActorEngine], log_file: str | None = None) -> None:
        log_to(log_file)
        self._make = make
        self._engine: ActorEngine | None = None
        self._version: str | None = None

    def process(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def load(self, version: str, folder: str) -> str:
        """Take the weights of a version, if they are not those that this actor has, and return the version it has."""
        if self._version != version:
            # Between two versions it has none.
            self._version = None
            with plainly("weights cannot be taken"):
                if self._engine is None:
                    self._engine = self._make()
                self._engine.load(folder)
            self._version = version
            log.info("process %d samples with weights %s", os.getpid(), version)
        return self._version

    def sample(self, version: str, folder: str, prompts: Sequence[Prompt]) -> list[Answer]:
        """Sample one answer to each prompt with the weights of a version, all of them together."""
        self.load(version, folder)
        assert self._engine is not None
        with plainly("prompts cannot be answered"):
            return self._engine.sample(prompts)
