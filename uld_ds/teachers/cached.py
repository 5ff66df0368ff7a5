"""A teacher with an output cache: the model, here or behind a server, is asked about each example once."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from uld_ds.batches import SideBatch
from uld_ds.errors import RunError
from uld_ds.recipe import Recipe, TeacherSettings
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.cache import OutputCache
from uld_ds.teachers.source import AheadSource, ModelSource
from uld_ds.utils.distributed import Ranks

log = logging.getLogger(__name__)


def cache_identity(recipe: Recipe, teacher: TeacherSettings, rows: str, server: Mapping[str, Any] | None = None) -> str:
    """Compute the digest of all that decides cached teacher outputs and the examples' numbers.

    Args:
        recipe: Recipe of the run.
        teacher: The teacher whose outputs they are.
        rows: Name of the prepared data, which is a digest of its content.
        server: Facts of the engine that a served teacher's outputs come from.
    """
    include = {"model", "revision", "gguf_file", "precision", "codec"}
    what: list[Any] = [
        rows,
        teacher.model_dump(mode="json", include=include),
        recipe.objective.teacher_temperature,
    ]
    # A cache without top-k tokens keeps the identity that it had in releases that knew of none.
    if number := recipe.taught.num_top_ids:
        what.append({"top_ids": number})
    if server is not None:
        what.append({"server": dict(server)})
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class CachedTeacher:
    """A teacher source that reads cached outputs, of this run or an earlier attempt at it, and computes only the rest.

    What it returns has always been through the codec, also the first time: an interrupted run and one that was not
    learn from the same numbers. Once all examples are cached, the teacher model is freed.

    Args:
        cache: output cache that all ranks share.
        teacher: Teacher that is asked about the others; None when everything is cached.
        num_examples: Number of examples of the training data.
        judged: Numbers of those that the teacher judges; by default all of them.
        ranks: Process group whose ranks call the teacher together.
        device: Device of collectives.
        keeps_teacher: Whether examples from ``num_examples`` on are asked about, too: they are of the day, are never
            cached, and need the teacher to the end.
    """

    def __init__(
        self,
        cache: OutputCache,
        teacher: ModelSource | None,
        *,
        num_examples: int,
        judged: np.ndarray | None = None,
        ranks: Ranks,
        device: torch.device,
        keeps_teacher: bool = False,
    ) -> None:
        self._cache = cache
        self._teacher = teacher
        self._num_examples = num_examples
        self._judged = judged
        self._ranks = ranks
        self._device = device
        self._keeps_teacher = keeps_teacher
        self._spent = (0, 0)
        self._waited: float | None = None

    @property
    def tokens_run(self) -> int:
        """Tokens that went through the teacher on this rank."""
        return self._spent[0] if self._teacher is None else self._teacher.tokens_run

    @property
    def bytes_gathered(self) -> int:
        """Bytes of the teacher's weights that this rank has received from others."""
        return self._spent[1] if self._teacher is None else self._teacher.bytes_gathered

    @property
    def is_loaded(self) -> bool:
        """Whether the teacher model is loaded: False once all its outputs are cached and it was freed."""
        return self._teacher is not None

    def answers(self, examples: Sequence[int], step: int) -> list[TeacherTokens]:
        """Return the teacher outputs of each example, on the CPU, computing those not cached yet. Collective.

        Raises:
            RunError: outputs are not in the cache and the teacher is gone: files of the cache are missing.
        """
        given = [example for example in examples if example < self._num_examples]
        said = dict(zip(given, self._cached(given, step), strict=True))
        if self._keeps_teacher:
            # Apart from given ones: which of those are cached already must not change what is batched with these.
            own = [example for example in examples if example >= self._num_examples]
            said |= zip(own, self._cache.as_read(self.asked.answers(own, step)), strict=True)
        self._free_when_done()
        return [said[example] for example in examples]

    def _cached(self, examples: Sequence[int], step: int) -> list[TeacherTokens]:
        """Return the outputs of given examples, all of which are in the cache afterwards. Collective."""
        self._cache.refresh()
        missing = sorted({example for example in examples if example not in self._cache})
        if self._max(len(missing)):
            if self._teacher is None:
                raise RunError("parts of the teacher's output cache are gone; start the run again, it will fill it up")
            said = self._teacher.answers(missing, step)
            self._cache.append(step, dict(zip(missing, said, strict=True)))
        return self._cache.read(list(examples))

    @property
    def asked(self) -> ModelSource:
        """The teacher itself, while it is loaded."""
        assert self._teacher is not None, "the teacher is gone"
        return self._teacher

    def answer_scores(self, batch: SideBatch) -> torch.Tensor:
        """Compute [A, 2] scores of answer tokens with the loaded teacher, as ``ModelSource.answer_scores``."""
        return self.asked.answer_scores(batch)

    @property
    def seconds_waited(self) -> float | None:
        """Seconds for which steps have waited for a teacher elsewhere so far; None with one that runs here."""
        return self._waited if self._teacher is None else _waited(self._teacher)

    def prefetch(self, examples: Sequence[int]) -> None:
        """Begin to ask about examples that are needed soon and not cached, where the teacher can be asked ahead."""
        if isinstance(self._teacher, AheadSource):
            # Own answers are never cached, and their numbers are behind those of all that is.
            self._teacher.prefetch([example for example in examples if example not in self._cache])

    def _free_when_done(self) -> None:
        if self._teacher is None or self._keeps_teacher:
            return
        self._cache.refresh()
        if self._max(0 if self._cache.complete(self._num_examples, self._judged) else 1):
            return
        log.info("the teacher has answered all %d examples: its memory is freed", len(self._cache))
        self._spent = (self._teacher.tokens_run, self._teacher.bytes_gathered)
        self._waited = _waited(self._teacher)
        self._teacher.close()
        self._teacher = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _max(self, value: int) -> int:
        return int(self._ranks.max(torch.tensor(value, device=self._device)))


def _waited(teacher: ModelSource) -> float | None:
    return teacher.seconds_waited if isinstance(teacher, AheadSource) else None
