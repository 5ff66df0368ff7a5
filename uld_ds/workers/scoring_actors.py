"""A teacher that runs in actors with an inference engine each: for ``ServedTeacher``, an engine without a server."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from uld_ds.errors import FinalError, RunError
from uld_ds.recipe import Recipe
from uld_ds.teachers.served.scores import Scores, checked
from uld_ds.utils.distributed import Ranks
from uld_ds.workers.actor_group import ActorGroup, failure, got, make_actors
from uld_ds.workers.scoring_actor import Scored, Scorer, ScoringActor, Text
from uld_ds.workers.vllm_scorer import ScorerOptions, VllmScorer

# One batch is being scored while the next one waits at the actor.
_IN_FLIGHT = 2
# Texts that are asked about one after the other go together.
_SECONDS_TO_COLLECT = 0.01


@dataclass
class _Wanted:
    """A text that was asked about, and whom to tell."""

    text: Text
    future: Future[Scores] = field(default_factory=Future)


class ScoringActors:
    """An engine of a served teacher that is a group of actors. Collective to make; each rank then asks by itself.

    Args:
        make: Makes an actor's engine, in the actor's process.
        group: The actors.
        max_tokens: Tokens of the texts that an actor gets together; a longer text goes alone.
        vocab_size: Ids that the model knows.
        logs: Folder of the log files.
        ranks: The process group.
        version: Version that the engines must have; by default all of them the same.

    Raises:
        RunError: an actor cannot be placed, or its engine does not start, or is of another version.
    """

    def __init__(
        self,
        make: Callable[[], Scorer],
        group: ActorGroup,
        *,
        max_tokens: int,
        vocab_size: int,
        logs: Path,
        ranks: Ranks,
        version: str | None = None,
    ) -> None:
        self._group, self._max_tokens, self._vocab_size = group, max_tokens, vocab_size
        name = ranks.gather(secrets.token_hex(6))[0]
        names = [f"uld-ds-{group.what}-{name}-{number}" for number in range(group.count)]
        self._owned: list[Any] = []
        problem: Exception | None = None
        if ranks.is_first:
            try:
                # Rank 0 holds what keeps them alive.
                self._owned = make_actors(ScoringActor, group, make, names=names, logs=logs)
            except Exception as error:
                problem = error
        if (found := ranks.gather(problem)[0]) is not None:
            raise found
        actors = self._owned or [ray.get_actor(name) for name in names]
        # Every rank asks: none waits in a collective call while engines start.
        versions: list[str] = []
        refused: RunError | None = None
        try:
            versions = got(group, [actor.version.remote() for actor in actors])
        except RunError as error:
            refused = _lasting(error, error.__cause__)
        # Together: when the first rank goes, its actors go, and others would be told of that instead.
        for own in ranks.gather(refused):
            if own is not None:
                raise own
        if len({_release(found) for found in [*versions, version or versions[0]]}) > 1:
            here = "" if version is None else f", here it is {version}"
            raise FinalError(f"{group.key}: the engines of {group.what} are of versions {', '.join(versions)}{here}")
        self.version: str = versions[0]
        """Version of the engine."""
        # Each rank begins with another actor.
        first = ranks.rank % len(actors)
        self._free = deque([*actors[first:], *actors[:first]] * _IN_FLIGHT)
        self._waiting: deque[_Wanted] = deque()
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._hand_out, name="teacher's actors", daemon=True).start()

    def score(self, ids: Sequence[int], positions: np.ndarray) -> Future[Scores]:
        """Begin to score a text; the future raises what went wrong."""
        wanted = _Wanted((np.asarray(ids, np.int32), np.asarray(positions, np.int32)))
        with self._changed:
            self._waiting.append(wanted)
            self._changed.notify()
        return wanted.future

    def close(self) -> None:
        """End the actors; what is under way is given up."""
        with self._changed:
            self._closed = True
            for wanted in self._waiting:
                wanted.future.cancel()
            self._waiting.clear()
            self._changed.notify()
        for actor in self._owned:
            ray.kill(actor)

    def _hand_out(self) -> None:
        """Give texts to whichever actor is free, until there is an end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._waiting and self._free))
                if self._closed:
                    return
            time.sleep(_SECONDS_TO_COLLECT)
            with self._changed:
                batch = self._next_batch()
                if not batch:
                    continue
                actor = self._free.popleft()
            try:
                asked = actor.score.remote([wanted.text for wanted in batch])
                asked.future().add_done_callback(partial(self._take_back, batch, actor))
            except Exception as error:  # whoever waits must not wait for ever
                self._fail(batch, actor, error)

    def _next_batch(self) -> list[_Wanted]:
        batch: list[_Wanted] = []
        tokens = 0
        while self._waiting and (not batch or tokens + len(self._waiting[0].text[0]) <= self._max_tokens):
            wanted = self._waiting.popleft()
            if wanted.future.set_running_or_notify_cancel():
                batch.append(wanted)
                tokens += len(wanted.text[0])
        return batch

    def _take_back(self, batch: Sequence[_Wanted], actor: Any, answer: Future[list[Scored]]) -> None:
        """Tell whoever asked, and free the actor for the next texts."""
        error = answer.exception()
        if error is not None:
            self._fail(batch, actor, _lasting(failure(self._group, error), error))
            return
        try:
            for wanted, (log_probs, ids, top) in zip(batch, answer.result(), strict=True):
                positions = wanted.text[1]
                scores = checked(log_probs, ids.astype(np.int64), top, positions, self._vocab_size)
                wanted.future.set_result(scores)
            self._free_again(actor)
        except Exception as problem:  # whatever it is, whoever waits must not wait for ever
            self._fail(batch, actor, problem)

    def _fail(self, batch: Sequence[_Wanted], actor: Any, error: Exception) -> None:
        for wanted in batch:
            if not wanted.future.done():
                wanted.future.set_exception(error)
        self._free_again(actor)

    def _free_again(self, actor: Any) -> None:
        with self._changed:
            self._free.append(actor)
            self._changed.notify()


def _lasting(error: RunError, cause: BaseException | None) -> RunError:
    """Return a FinalError of what an actor raised, which it would raise again; one that was lost may be made anew."""
    return FinalError(str(error)) if isinstance(cause, ray.exceptions.RayTaskError) else error


def _release(version: str) -> str:
    """Return a version without the device that it was built for, which not every way of asking tells."""
    return version.partition("+")[0]


def vllm_scoring_actors(
    recipe: Recipe, place: str, *, vocab_size: int, version: str, logs: Path, ranks: Ranks
) -> ScoringActors:
    """Make the actors that a recipe with ``store.engine: vllm`` asks for. Collective.

    Args:
        recipe: The recipe, whose actors say how many GPUs they have.
        place: Directory or hub id of the teacher's model.
        vocab_size: Ids that the model knows.
        version: Version of vLLM that they must have.
        logs: Folder of the log files.
        ranks: The process group.
    """
    settings = recipe.teacher_named()
    group = ActorGroup.of(recipe.store.actors, recipe.cluster, what="teacher", on_gpu=False)
    options = ScorerOptions(
        model=place,
        revision=settings.revision,
        precision=settings.precision,
        max_length=settings.max_length,
        max_tokens=settings.max_tokens_per_forward,
        top=recipe.store.top,
        gpus=group.gpus,
    )
    make = partial(VllmScorer, options)
    return ScoringActors(
        make,
        group,
        max_tokens=options.max_tokens,
        vocab_size=vocab_size,
        logs=logs,
        ranks=ranks,
        version=version,
    )
