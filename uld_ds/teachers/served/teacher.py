"""The served teacher: a source of outputs that an inference engine gives, asked for ahead of who needs them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from uld_ds.batches import SideBatch
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.errors import FinalError, RunError
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.served.scores import BadReplyError, Engine, Scores
from uld_ds.teachers.source import NonFiniteTeacherError
from uld_ds.utils.distributed import Ranks

_SLICE_SECONDS = 30.0
"""How long a rank waits before it looks at how the others do: far less than a process group waits for a rank."""


@dataclass(frozen=True)
class _Text:
    """What is asked about one example."""

    ids: list[int]
    """Token ids up to the last one that is asked about."""
    positions: np.ndarray
    """Positions of its answer tokens."""


class ServedTeacher:
    """A teacher source that asks an engine about each example on its own, for this rank alone.

    Args:
        engine: the engine, which tells the likeliest tokens of each position.
        batcher: batches of the teacher's side of the training data.
        vocab_size: ids that the model knows.
        ranks: process group whose ranks ask together, and fail together.
        device: device of collectives.
        top_ids: number of top-k tokens to keep by id as well; 0 for none.
    """

    bytes_gathered = 0

    def __init__(
        self,
        engine: Engine,
        batcher: TeacherBatcher,
        *,
        vocab_size: int,
        ranks: Ranks,
        device: torch.device,
        top_ids: int = 0,
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._vocab_size = vocab_size
        self._ranks = ranks
        self._device = device
        self._top_ids = top_ids
        self._asked: dict[int, tuple[_Text, Future[Scores]]] = {}
        self.tokens_run = 0
        """Tokens of the texts whose outputs this rank has used so far."""
        self.seconds_waited = 0.0
        """Seconds for which steps have waited for the engine so far, on the slowest rank."""

    def ask_about(self, batcher: TeacherBatcher) -> None:
        """Take other examples to be asked about by number: new ones have come, e.g. the student's own answers."""
        self.prefetch([])
        self._batcher = batcher

    def close(self) -> None:
        """Let go of the engine; what is under way is given up."""
        self._asked.clear()
        self._engine.close()

    def prefetch(self, examples: Sequence[int]) -> None:
        """Begin to ask about examples that are needed soon; what was begun for others is given up."""
        wanted = [example for example in dict.fromkeys(examples) if self._batcher.lengths[example]]
        for example in self._asked.keys() - set(wanted):
            self._asked.pop(example)[1].cancel()
        self._begin(wanted)

    def answers(self, examples: Sequence[int], step: int) -> list[TeacherTokens]:
        """Return the teacher outputs of each example, on the CPU. Collective.

        Raises:
            NonFiniteTeacherError: on every rank, when an answer token of any has no probability at all.
            FinalError: on every rank, when the engine refuses, answers wrongly or is gone for any.
        """
        wanted = sorted(set(examples))
        self._begin(wanted)
        asked = {example: self._asked.pop(example) for example in wanted}
        found = self._gathered([future for _, future in asked.values()], [f"example {number}" for number in wanted])
        self.tokens_run += sum(len(text.ids) for text, _ in asked.values())
        self._check_finite(dict(zip(wanted, found, strict=True)))
        said = dict(zip(wanted, self._tokens(found), strict=True))
        return [said[example] for example in examples]

    def outputs(self, batch: SideBatch) -> TeacherTokens:
        """Return the teacher outputs at all answer tokens of a batch, of the training data or not. Collective."""
        texts = _texts(batch)
        futures = [self._engine.score(text.ids, text.positions) for text in texts]
        found = self._gathered(futures, [f"held-out text {number}" for number in range(len(texts))])
        self.tokens_run += sum(len(text.ids) for text in texts)
        return TeacherTokens.cat(self._tokens(found))

    def answer_scores(self, batch: SideBatch) -> Tensor:
        """Compute [A, 2] natural log-probabilities: of each answer token, and of the most probable token there.

        The batch is any teacher's side of examples, of the training data or not. Collective.
        """
        said = self.outputs(batch)
        return torch.stack([said.log_probs, said.spectrum.head[:, 0].log()], 1).to(self._device)

    def _begin(self, examples: Sequence[int]) -> None:
        new = [example for example in examples if example not in self._asked]
        if not new:
            return
        for example, text in zip(new, _texts(self._batcher.batch(new)), strict=True):
            self._asked[example] = text, self._engine.score(text.ids, text.positions)

    def _gathered(self, futures: Sequence[Future[Scores]], names: Sequence[str]) -> list[Scores]:
        """Wait for this rank's replies, and until those of all ranks are there. Collective.

        Raises:
            FinalError: on every rank, when there is no good reply for any.
            RunError: the same, where workers that start again may get one.
        """
        begin = time.perf_counter()
        while True:
            _, missing = wait(futures, timeout=_SLICE_SECONDS, return_when=FIRST_EXCEPTION)
            failure = _failure(futures, names)
            waited = time.perf_counter() - begin
            # Ranks meet at intervals, however long one of them has to wait: a process group takes those that do not
            # come for lost. float64 is exact here; what is waited for is no part of a result.
            state = torch.tensor([len(missing), failure is not None, waited], dtype=torch.float64, device=self._device)
            unfinished, failed, slowest = self._ranks.max(state).tolist()
            if failed:
                self._fail(failure)
            if not unfinished:
                self.seconds_waited += slowest
                return [future.result() for future in futures]

    def _fail(self, failure: BaseException | None) -> None:
        lasts = not isinstance(failure, RunError) or isinstance(failure, FinalError)
        found = self._ranks.gather(None if failure is None else (not lasts, str(failure)))
        # What would be the same after a restart counts more than what would not.
        passes, said = min(one for one in found if one is not None)
        raise (RunError if passes else FinalError)(said) from failure

    def _check_finite(self, found: dict[int, Scores]) -> None:
        bad = [example for example, scores in found.items() if not np.isfinite(scores.log_probs).all()]
        if self._ranks.max(torch.tensor(len(bad), device=self._device)):
            raise NonFiniteTeacherError(self._ranks.union(bad))

    def _tokens(self, found: Sequence[Scores]) -> list[TeacherTokens]:
        """Make teacher outputs of scores: one for each text."""
        if not found:
            return []
        top = torch.from_numpy(np.concatenate([scores.top for scores in found]))  # [A, k]
        kept = None
        if self._top_ids:
            kept = TopTokens(torch.from_numpy(np.concatenate([scores.ids for scores in found])), top)
            kept = kept.first(self._top_ids)
        whole = TeacherTokens(
            Spectrum.from_top_log_probs(top, vocab_size=self._vocab_size),
            torch.from_numpy(np.concatenate([scores.log_probs for scores in found])),
            kept,
        )
        stops = np.cumsum([len(scores.log_probs) for scores in found]).tolist()
        return [whole[stop - len(scores.log_probs) : stop] for scores, stop in zip(found, stops, strict=True)]


def _texts(batch: SideBatch) -> list[_Text]:
    """Take each example of a batch apart: its ids without padding, and where its answer tokens are."""
    assert batch.lengths is not None, "a served teacher has no encoder"
    batch = batch.to(torch.device("cpu"))
    length = batch.input_ids.shape[1]
    texts = []
    for number, ids in enumerate(batch.input_ids.tolist()):
        rows = batch.answer_rows[batch.answer_example == number] - number * length
        positions = rows.numpy() + 1
        texts.append(_Text(ids[: int(positions.max(initial=0)) + 1], positions))
    return texts


def _failure(futures: Sequence[Future[Scores]], names: Sequence[str]) -> BaseException | None:
    """Find what went wrong with the first text that something went wrong with, if any."""
    for future, name in zip(futures, names, strict=True):
        error = future.exception() if future.done() else None
        if isinstance(error, BadReplyError):
            return FinalError(f"the teacher's server answers wrongly about {name}: {error}")
        if error is not None:
            return error
    return None
