"""The Ray actors in which an inference engine runs, as sections of a recipe."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from uld_ds.recipe.base import Strict


class EngineActorSettings(Strict):
    section: ClassVar[str]
    """The section of a recipe that they are in, for messages."""

    count: Annotated[int, Field(ge=1)] = 1
    """Actors, each with an engine of its own."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of each actor. Default: 1 where the workers train on GPUs, else 0."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores of each actor."""
    python: Annotated[str, Field(min_length=1)] | None = None
    """Python interpreter of the actors, by its path on every node, where vLLM cannot be installed beside this program.
    It needs vLLM, the workers' versions of Python and Ray, and uld-ds (``pip install --no-deps``). Default: the
    workers' own."""

    def gpus_each(self, *, on_gpu: bool) -> float:
        """Return the GPUs of each actor, where the workers train on GPUs or not."""
        return (1.0 if on_gpu else 0.0) if self.gpus is None else self.gpus


class RolloutActorSettings(EngineActorSettings):
    """The Ray actors that sample with ``rollouts.engine: vllm``, beside the workers that train."""

    section = "rollouts"


class StoreActorSettings(EngineActorSettings):
    """The Ray actors that run the teacher with ``store.engine: vllm``."""

    section = "store"
