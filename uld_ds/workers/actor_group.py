"""A group of Ray actors, each with an inference engine: how they are made, waited for, and what their errors become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from uld_ds.errors import RunError, message_lines, one_line
from uld_ds.recipe import ClusterSettings
from uld_ds.recipe.actors import EngineActorSettings

_SECONDS_TO_START = 300.0
_LONGEST = 600


@dataclass(frozen=True)
class ActorGroup:
    """The actors to make: how many, what each of them takes, where they may run."""

    what: str
    """What one of them is called, e.g. ``rollouts``; also the beginning of their logs' names."""
    key: str
    """The recipe's key about them."""
    count: int
    cpus: float
    gpus: float
    python: str | None = None
    """Interpreter of the actors; None is the workers' own."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selectors of their nodes."""
    accelerator_type: str | None = None
    """Kind of accelerator of their nodes."""
    restarts: int = 3
    """How often each of them is made anew when it was lost; -1 without end."""
    wait_seconds: float = _SECONDS_TO_START
    """How long they may take to be placed and started, without their engines."""

    @classmethod
    def of(cls, actors: EngineActorSettings, cluster: ClusterSettings, *, what: str, on_gpu: bool) -> ActorGroup:
        """Make the group that a recipe asks for.

        Args:
            actors: the recipe's section about them.
            cluster: the recipe's.
            what: what one of them is called; its log is named after that.
            on_gpu: whether the workers have GPUs.
        """
        return cls(
            what=what,
            key=f"{actors.section}.actors",
            count=actors.count,
            cpus=actors.cpus,
            gpus=actors.gpus_each(on_gpu=on_gpu),
            python=actors.python,
            labels=cluster.ray_labels(),
            accelerator_type=cluster.accelerator_type,
            restarts=cluster.max_failures,
            wait_seconds=max(cluster.wait_seconds, _SECONDS_TO_START),
        )

    def options(self) -> dict[str, Any]:
        """Return Ray's options for each of them."""
        environment: dict[str, Any] = {"env_vars": {"OMP_NUM_THREADS": str(max(1, int(self.cpus)))}}
        if self.python is not None:
            environment["py_executable"] = self.python
        options: dict[str, Any] = {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "max_restarts": self.restarts,
            # A call that was lost with its actor is made again: it names all that its answer depends on.
            "max_task_retries": self.restarts,
            # Not inside of the workers' own share of the cluster.
            "scheduling_strategy": "DEFAULT",
            "runtime_env": environment,
        }
        if self.labels:
            options["label_selector"] = dict(self.labels)
        if self.accelerator_type is not None:
            options["accelerator_type"] = self.accelerator_type
        return options


def make_actors(
    kind: type, group: ActorGroup, make: Callable[[], Any], *, names: Sequence[str], logs: Path
) -> list[Any]:
    """Make the actors of a group, which go with this process, and wait until all of them are placed and running.

    Args:
        kind: class of the actors, which takes what makes its engine, and the file of its log.
        group: the group.
        make: makes an actor's engine, in the actor's process.
        names: names in Ray, for other processes.
        logs: folder of the log files.

    Raises:
        RunError: one is not placed in time, or cannot be started.
    """
    actors: list[Any] = [
        ray.remote(kind).options(name=name, **group.options()).remote(make, str(logs / f"{group.what}-{number}.log"))
        for number, name in enumerate(names)
    ]
    try:
        got(group, [actor.process.remote() for actor in actors], timeout=group.wait_seconds)
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(
            f"no room for {group.count} actor(s) of {group.what} ({group.cpus:g} CPU, {group.gpus:g} GPU each) within "
            f"{group.wait_seconds:.0f} s ({group.key})"
        ) from error
    return actors


def got(group: ActorGroup, asked: Sequence[Any], timeout: float | None = None) -> list[Any]:
    """Return what actors of a group answer.

    Raises:
        RunError: one failed, or was lost once too often.
        ray.exceptions.GetTimeoutError: it took too long.
    """
    try:
        return ray.get(list(asked), timeout=timeout)
    except ray.exceptions.GetTimeoutError:
        raise
    except ray.exceptions.RayError as error:
        raise failure(group, error) from error


def failure(group: ActorGroup, error: BaseException) -> RunError:
    """Make the error that a run ends with of what Ray raises about an actor."""
    lines = message_lines(error)
    # The actor's traceback ends with what was raised; of a lost actor the first line says most.
    failed = isinstance(error, ray.exceptions.RayTaskError)
    said = lines[-1].removeprefix("RuntimeError: ") if failed else lines[0]
    return RunError(f"an actor of {group.what} failed: {one_line(said, _LONGEST)} (logs/{group.what}-*.log)")
