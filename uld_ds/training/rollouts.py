"""The rounds of a run as its trainer sees them: sampled, written down, and read as examples beside the given ones."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from uld_ds.data.examples import Example
from uld_ds.errors import RunError
from uld_ds.generation.sampling import Asked, Sampled, batches_by_length
from uld_ds.rollouts.engine import RolloutEngine
from uld_ds.rollouts.journal import Round, RoundAnswer, RoundFolder
from uld_ds.rollouts.prompts import asked_of
from uld_ds.rollouts.rounds import RoundPlan
from uld_ds.rollouts.statistics import student_nats, summary_of
from uld_ds.rollouts.summary import RoundSummary, ShownAnswer
from uld_ds.utils.distributed import Ranks

log = logging.getLogger(__name__)

Sign = Callable[[int, int, int], None]
"""Told, while this rank waits for a round, its number and how many of how many of its answers are sampled."""


class Pairer(Protocol):
    """What makes prepared rows of sampled answers: ``uld_ds.data.own_answers.OwnAnswers``."""

    def __call__(
        self, examples: Sequence[Example], sampled: Sequence[Sampled], prompts_ids: Sequence[np.ndarray]
    ) -> list[dict[str, Any] | str]:
        """Make a row of each answer, or say why it cannot be used."""
        ...

    def text(self, sampled: Sampled, prompt_ids: np.ndarray) -> str:
        """Return an answer as text, for people to look at."""
        ...


@dataclass
class _Work:
    """The sampling of one round on this rank."""

    number: int
    missing: list[int]
    seconds: dict[str, float]
    thread: threading.Thread | None = None
    error: BaseException | None = None


class Rollouts:
    """The keeper of the rounds: samples what is missing, reads what is there, and knows the current round's rows.

    A round's answers are on the disk before the first of them is trained on. Whoever resumes within a round reads
    them; whoever begins one with some of its batches there, samples the others: with the same weights they are the
    same, bit for bit, on any number of ranks.

    Args:
        plan: Rounds of the run.
        prompts: Prepared prompts.
        given: Prepared training rows; a round's rows are numbered on from them.
        folder: Where rounds are kept.
        engine: Samples them.
        pairer: Makes rows of sampled answers.
        batch_size: Prompts that are answered together.
        ahead: Whether the next round is sampled, in a thread, while the current one is trained on.
        ranks: Process group.
        device: Device of collectives.
    """

    def __init__(
        self,
        plan: RoundPlan,
        prompts: Dataset,
        given: Dataset,
        folder: RoundFolder,
        engine: RolloutEngine,
        pairer: Pairer,
        *,
        batch_size: int,
        ahead: bool,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.plan = plan
        self._prompts = prompts
        self._ids = prompts.select_columns(["prompt_ids"]).with_format("numpy")
        self._given = given
        self._folder = folder
        self._engine = engine
        self._pairer = pairer
        self._batch_size = batch_size
        self._ahead = ahead
        self._ranks = ranks
        self._device = device
        self._work: _Work | None = None
        self.number: int | None = None
        """Number of the current round; None before the first."""
        self.current = Round(())
        """Answers of the current round."""
        self._slot_rows = np.zeros(0, np.int64)

    def begin(self, step: int, sign: Sign = lambda *_: None) -> tuple[Dataset, RoundSummary] | None:
        """Have the round that a step learns from; return its rows after the given ones, and its facts, if it is new.

        Collective.

        Args:
            step: Optimizer step, counted from 0.
            sign: Told how far sampling is.

        Raises:
            FinalError: answers that the run has learned from are gone or damaged.
        """
        number = self.plan.round_of(step)
        if number == self.number:
            return None
        begins = step == self.plan.first_step(number)
        seconds = self._sampled(number, begins=begins, sign=sign)
        asked, batches = self._asked(number)
        begin = time.perf_counter()
        self.current = self._folder.read(number, len(batches))
        rows = self.current.rows()
        numbers = self.current.numbers()
        self._slot_rows = np.where(numbers >= 0, numbers + len(self._given), -1)
        self.number = number
        seconds["reading"] = time.perf_counter() - begin
        lengths = [len(one.prompt) for one in asked]
        summary = summary_of(number, self.plan.first_step(number), self.current.answers, lengths, seconds)
        if self._ahead and begins and number + 1 < self.plan.num_rounds:
            self._start(number + 1, lambda *_: None, beside=True)
        return concatenate_datasets([self._given, rows]), summary

    def examples_of(self, step: int) -> np.ndarray:
        """Return the example numbers of a step's own answers, [per_step]; -1 for one that cannot be used."""
        slots = self.plan.slots_of_step(step)
        return self._slot_rows[slots.start : slots.stop]

    def shown(self, example: int, teacher_nats: float) -> ShownAnswer:
        """Return a training example that is an answer of the current round, for people to look at.

        Args:
            example: Number of the example.
            teacher_nats: Negative log-probability of it under the teacher.
        """
        answer = self.current.answers[int(np.flatnonzero(self._slot_rows == example)[0])]
        assert answer.row is not None
        ids = self._ids[answer.prompt]["prompt_ids"]
        return ShownAnswer(
            prompt=str(self._prompts[answer.prompt]["prompt"]),
            answer=self._pairer.text(answer.sampled, ids),
            ended=answer.sampled.ended,
            student_nats=student_nats(answer, len(ids)),
            teacher_nats=teacher_nats,
            bytes=int(answer.row["answer_bytes"]),
        )

    def settle(self) -> None:
        """Wait until a round that is sampled ahead is on the disk. Collective.

        A checkpoint that is made within a round has the weights of its own step: the next round's answers, which are
        of the round's beginning, could not be sampled again.
        """
        if self._work is not None:
            self._join(self._work)

    def close(self) -> None:
        """Leave: wait for this rank's thread, and free the engine."""
        if self._work is not None and self._work.thread is not None:
            self._work.thread.join()
        self._engine.close()

    def _sampled(self, number: int, *, begins: bool, sign: Sign) -> dict[str, float]:
        """Sample what is missing of a round, and return the seconds that it took by phase, on the slowest rank."""
        work = self._work
        if work is not None and work.number == number:
            return self._join(work)
        if work is not None:
            self._join(work)
        if not begins:
            # The weights that its answers were sampled with are gone; reading says what is missing.
            return {}
        if self._ranks.is_first:
            self._folder.clean(number)
        started = self._start(number, sign, beside=False)
        if started is None:
            return {}
        if self._ahead and number:
            log.warning("round %d was to be sampled ahead, and is not there: what is missing was sampled now", number)
        return self._join(started)

    def _start(self, number: int, sign: Sign, *, beside: bool) -> _Work | None:
        """Begin to sample a round on this rank, in a thread ``beside`` training, or at once. None: it is all there."""
        _, batches = self._asked(number)
        mine = range(self._ranks.rank, len(batches), self._ranks.size)
        missing = [batch for batch in mine if not self._folder.is_whole(number, batch)]
        if not self._max(len(missing)):
            return None
        work = self._work = _Work(number, missing, {})
        begin = time.perf_counter()
        self._engine.take_weights()
        work.seconds["weights"] = time.perf_counter() - begin
        if beside:
            threads = torch.get_num_threads()

            def run() -> None:
                # A new thread has as many as there are cores, and other sums of the same numbers.
                torch.set_num_threads(threads)
                self._guarded(work, sign)

            work.thread = threading.Thread(target=run, name="rollouts", daemon=True)
            work.thread.start()
        else:
            self._guarded(work, sign)
        return work

    def _guarded(self, work: _Work, sign: Sign) -> None:
        try:
            with torch.no_grad():
                self._sample(work, sign)
        except BaseException as error:
            work.error = error

    def _sample(self, work: _Work, sign: Sign) -> None:
        asked, batches = self._asked(work.number)
        chosen = self.plan.prompts(work.number)
        seconds = work.seconds
        done, wanted = 0, sum(len(batches[batch]) for batch in work.missing)
        sign(work.number, done, wanted)
        begin = time.perf_counter()
        for batch, sampled in self._engine.sample({b: [asked[slot] for slot in batches[b]] for b in work.missing}):
            seconds["sampling"] = seconds.get("sampling", 0.0) + time.perf_counter() - begin
            slots = batches[batch]
            begin = time.perf_counter()
            examples = [asked_of(self._prompts, int(chosen[slot])) for slot in slots]
            rows = self._pairer(examples, sampled, [asked[slot].prompt for slot in slots])
            seconds["alignment"] = seconds.get("alignment", 0.0) + time.perf_counter() - begin
            begin = time.perf_counter()
            answers = [
                RoundAnswer(slot, int(chosen[slot]), said, None, row)
                if isinstance(row, str)
                else RoundAnswer(slot, int(chosen[slot]), said, row)
                for slot, said, row in zip(slots, sampled, rows, strict=True)
            ]
            self._folder.write(work.number, batch, answers)
            done += len(answers)
            sign(work.number, done, wanted)
            seconds["writing"] = seconds.get("writing", 0.0) + time.perf_counter() - begin
            begin = time.perf_counter()

    def _join(self, work: _Work) -> dict[str, float]:
        """Wait for a round that is being sampled, on all ranks. Collective."""
        begin = time.perf_counter()
        if work.thread is not None:
            work.thread.join()
        self._work = None
        # A rank that fails alone would leave the others waiting for it.
        failed = self._max(int(work.error is not None))
        if work.error is not None:
            raise work.error
        if failed:
            raise RunError(f"round {work.number} could not be sampled on another worker: its log says why")
        work.seconds["waiting"] = time.perf_counter() - begin
        self._engine.release()
        return self._slowest(work.seconds)

    def _asked(self, number: int) -> tuple[list[Asked], list[list[int]]]:
        """Return the prompts of a round by slot, and its batches of slots: the same on every rank."""
        chosen = self.plan.prompts(number)
        asked = [
            Asked(self.plan.name(number, slot), ids)
            for slot, ids in enumerate(self._ids[chosen.tolist()]["prompt_ids"] if len(chosen) else [])
        ]
        return asked, batches_by_length(asked, self._batch_size)

    def _slowest(self, seconds: Mapping[str, float]) -> dict[str, float]:
        every = self._ranks.gather(dict(seconds))
        return {name: max(of_rank.get(name, 0.0) for of_rank in every) for name in {n for one in every for n in one}}

    def _max(self, value: int) -> int:
        return int(self._ranks.max(torch.tensor(value, device=self._device)))
