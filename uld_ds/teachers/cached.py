"""An online teacher that is asked about each example once."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import torch

from uld_ds.batches import SideBatch
from uld_ds.errors import RunError
from uld_ds.recipe import Recipe
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.cache import OutputCache
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.utils.distributed import Ranks

log = logging.getLogger(__name__)


def cache_identity(recipe: Recipe, rows: str) -> str:
    """Digest of all that decides what the teacher says, and of which example has which number.

    Args:
        recipe: the run's.
        rows: name of the prepared data, which is a digest of its content.
    """
    include = {"model", "revision", "gguf_file", "precision", "codec"}
    what: list[Any] = [
        rows,
        recipe.teacher.model_dump(mode="json", include=include),
        recipe.objective.teacher_temperature,
    ]
    # A memory without likeliest tokens is the same as before there were any.
    if number := recipe.objective.num_top_ids:
        what.append({"top_ids": number})
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class CachedTeacher:
    """Reads what was said before, in this run or in an earlier attempt at it, and asks only about the rest.

    What it returns has always been through the codec, also the first time: an interrupted run and one that was not
    learn from the same numbers. Once nothing is left to ask, the teacher's memory is freed.

    Args:
        memory: shared by all ranks.
        teacher: None when everything is remembered.
        num_examples: of the training data.
        ranks: that ask together.
        device: of collectives.
    """

    def __init__(
        self,
        memory: OutputCache,
        teacher: OnlineTeacher | None,
        *,
        num_examples: int,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self._memory = memory
        self._teacher = teacher
        self._num_examples = num_examples
        self._ranks = ranks
        self._device = device
        self._spent = (0, 0)

    @property
    def tokens_run(self) -> int:
        """Tokens that went through the teacher on this rank."""
        return self._spent[0] if self._teacher is None else self._teacher.tokens_run

    @property
    def bytes_gathered(self) -> int:
        """Bytes of the teacher's weights that this rank has received."""
        return self._spent[1] if self._teacher is None else self._teacher.bytes_gathered

    @property
    def is_loaded(self) -> bool:
        """False once the teacher has said everything and is gone."""
        return self._teacher is not None

    def answers(self, examples: Sequence[int], step: int) -> list[TeacherTokens]:
        """What the teacher says about each example, on the CPU. Collective.

        Raises:
            RunError: something is neither remembered nor can be asked: files of the memory are gone.
        """
        self._memory.refresh()
        missing = sorted({example for example in examples if example not in self._memory})
        if self._max(len(missing)):
            if self._teacher is None:
                raise RunError("parts of the teacher's memory are gone; start the run again, it will fill it up")
            said = self._teacher.answers(missing, step)
            self._memory.append(step, dict(zip(missing, said, strict=True)))
        found = self._memory.read(list(examples))
        self._free_when_done()
        return found

    @property
    def asked(self) -> OnlineTeacher:
        """The teacher itself, while it is there."""
        assert self._teacher is not None, "the teacher is gone"
        return self._teacher

    def answer_scores(self, batch: SideBatch) -> torch.Tensor:
        """Of the teacher itself, while it is there."""
        return self.asked.answer_scores(batch)

    def _free_when_done(self) -> None:
        if self._teacher is None:
            return
        self._memory.refresh()
        if self._max(0 if self._memory.complete(self._num_examples) else 1):
            return
        log.info("the teacher has answered all %d examples: its memory is freed", self._num_examples)
        self._spent = (self._teacher.tokens_run, self._teacher.bytes_gathered)
        self._teacher.close()
        self._teacher = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _max(self, value: int) -> int:
        return int(self._ranks.max(torch.tensor(value, device=self._device)))
