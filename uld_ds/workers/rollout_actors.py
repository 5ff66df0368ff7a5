"""Rollouts by actors beside the workers: they get each round's weights through the run's folder, and keep running.

Rank 0 makes the actors, and they go when it goes. What an actor is asked names the weights to answer with and where
they are. So an actor that was lost is simply made anew by Ray, and asked again by Ray what it has not answered: it
finds the weights itself.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from uld_ds.checkpointing.export import write_weights
from uld_ds.errors import FinalError, RunError
from uld_ds.generation.decoding import end_ids
from uld_ds.generation.sampling import Asked, Sampled, Sampling
from uld_ds.recipe import Recipe
from uld_ds.utils.distributed import Ranks
from uld_ds.utils.files import ASIDE
from uld_ds.workers.actor_group import ActorGroup, got, make_actors
from uld_ds.workers.rollout_actor import ActorEngine, Answer, RolloutActor
from uld_ds.workers.vllm_engine import VllmEngine, VllmOptions

log = logging.getLogger(__name__)

_WEIGHTS = "weights-"
# One batch is being answered while the next one waits at the actor.
_IN_FLIGHT = 2
_SECONDS_BETWEEN_NOTES = 60.0


class RolloutActors:
    """A ``RolloutEngine`` of actors beside the workers. Collective to make.

    Args:
        student: DeepSpeed engine around a RowModel; its weights are what the actors get.
        seed: Seed that the draws depend on besides each prompt's name.
        make: Makes an actor's engine, in the actor's process.
        group: The actors.
        folder: Folder for the weights of the round, which every node sees; they lie there while they are needed.
        logs: Folder of the log files.
        ranks: The process group.
    """

    def __init__(
        self,
        student: Any,
        *,
        seed: int,
        make: Callable[[], ActorEngine],
        group: ActorGroup,
        folder: Path,
        logs: Path,
        ranks: Ranks,
    ) -> None:
        self._student = student
        self._group = group
        self._seed = seed
        self._ranks = ranks
        self._folder = folder
        self._count = 0
        self._weights: tuple[str, str] | None = None
        # Weights and actors of an attempt before this one have other names.
        self._name = ranks.gather(secrets.token_hex(6))[0]
        names = [f"uld-ds-rollouts-{self._name}-{number}" for number in range(group.count)]
        if ranks.is_first:
            _remove_weights(folder)
            # Rank 0 holds what keeps them alive.
            self._actors = make_actors(RolloutActor, group, make, names=names, logs=logs)
        ranks.barrier()
        if not ranks.is_first:
            self._actors = [ray.get_actor(name) for name in names]

    def take_weights(self) -> None:
        """Give the student's weights of now to all actors, and wait until each has said that it has them. Collective.

        Raises:
            RunError: an actor cannot take them; a FinalError with the first ones, as no engine would start later.
        """
        self._remove()
        self._count += 1
        version = f"{self._name}-{self._count}"
        folder = self._folder / f"{_WEIGHTS}{version}"
        begin = time.perf_counter()
        write_weights(self._student, folder, self._ranks)
        written = time.perf_counter()
        self._weights = version, str(folder)
        # Every rank asks; an actor that has them says so at once. So no rank waits for another in a collective call.
        try:
            confirmed = got(self._group, [actor.load.remote(version, str(folder)) for actor in self._actors])
        except RunError as error:
            if self._count > 1 or not isinstance(error.__cause__, ray.exceptions.RayTaskError):
                raise
            # The engine does not start: an architecture that it does not know, too little memory.
            raise FinalError(str(error)) from error
        assert set(confirmed) == {version}, confirmed
        log.info(
            "weights %s: written in %.1f s, taken by %d actor(s) in %.1f s",
            version, written - begin, len(confirmed), time.perf_counter() - written,
        )  # fmt: skip

    def sample(self, batches: Mapping[int, Sequence[Asked]]) -> Iterator[tuple[int, list[Sampled]]]:
        """Let the actors sample this rank's batches, each by one of them; yield each as soon as it is there.

        It makes no collective call and reads no weights of this process: it may run in a thread beside training.

        Args:
            batches: Prompts of each batch, by its number.

        Raises:
            RunError: an actor failed, or was lost once too often.
            FinalError: the student's log-probabilities are not finite.
        """
        assert self._weights is not None, "take_weights comes first"
        version, folder = self._weights
        waiting = deque(batches)
        asked: dict[Any, tuple[int, Any]] = {}

        def ask(actor: Any) -> None:
            if waiting:
                number = waiting.popleft()
                prompts = [(draw_seed(self._seed, one.name), one.prompt) for one in batches[number]]
                asked[actor.sample.remote(version, folder, prompts)] = number, actor

        # Each rank begins with another actor.
        first = self._ranks.rank % len(self._actors)
        for actor in [*self._actors[first:], *self._actors[:first]] * _IN_FLIGHT:
            ask(actor)
        while asked:
            done, _ = ray.wait(list(asked), num_returns=1, timeout=_SECONDS_BETWEEN_NOTES)
            if not done:
                log.info("waiting for the rollout actors: %d batch(es) asked, %d to ask", len(asked), len(waiting))
                continue
            number, actor = asked.pop(done[0])
            answers = got(self._group, done)[0]
            ask(actor)
            yield number, [_sampled(answer) for answer in answers]

    def release(self) -> None:
        """Remove the round's weights from the run's folder, when every rank has its answers. Collective."""
        self._ranks.barrier()
        self._remove()

    def close(self) -> None:
        """End the actors."""
        self._remove()
        if self._ranks.is_first:
            for actor in self._actors:
                ray.kill(actor)
        self._actors = []

    def _remove(self) -> None:
        if self._weights is not None and self._ranks.is_first:
            shutil.rmtree(self._weights[1], ignore_errors=True)
        self._weights = None


def vllm_actors(
    student: Any, recipe: Recipe, *, ends: Sequence[int], folder: Path, logs: Path, ranks: Ranks, on_gpu: bool
) -> RolloutActors:
    """Make the actors that a recipe with ``rollouts.engine: vllm`` asks for. Collective.

    Args:
        student: DeepSpeed engine around a RowModel.
        recipe: The recipe.
        ends: Token ids that end an answer, besides those that the model's generation configuration names.
        folder: Folder for the weights of the round, which every node sees.
        logs: Folder of the log files.
        ranks: The process group.
        on_gpu: Whether the workers train on GPUs.
    """
    assert recipe.rollouts is not None
    sampling = Sampling.of(recipe.rollouts, recipe.run.seed)
    group = ActorGroup.of(recipe.rollouts.actors, recipe.cluster, what="rollouts", on_gpu=on_gpu)
    named = end_ids(student.module.lm.generation_config.eos_token_id)
    options = VllmOptions(
        precision=recipe.student.precision,
        max_length=recipe.student.max_length,
        batch_size=recipe.rollouts.batch_size,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        ends=tuple(sorted({*named, *map(int, ends)})),
        gpus=group.gpus,
    )
    make = partial(VllmEngine, options)
    return RolloutActors(student, seed=sampling.seed, make=make, group=group, folder=folder, logs=logs, ranks=ranks)


def draw_seed(seed: int, name: str) -> int:
    """Compute the seed of one answer's draws, below 2**63, from the run's seed and the answer's name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _sampled(answer: Answer) -> Sampled:
    ids, log_probs, ended = answer
    if not np.isfinite(log_probs).all():
        raise FinalError("the student's logits are not finite: it has nothing to sample from")
    return Sampled(np.asarray(ids, np.int32), np.asarray(log_probs, np.float32), bool(ended))


def _remove_weights(folder: Path) -> None:
    """Make the folder, and remove weights that an attempt before this one has left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if left.name.startswith(_WEIGHTS) or (left.name.startswith(ASIDE) and _WEIGHTS in left.name):
            shutil.rmtree(left, ignore_errors=True)
