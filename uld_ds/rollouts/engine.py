"""The interface of what samples a round's answers: the student in the workers, or an inference engine beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from uld_ds.generation.sampling import Asked, Sampled


class RolloutEngine(Protocol):
    """A sampler of rounds, on every rank alike.

    ``sample`` makes no collective call and touches nothing that training changes: it may run in a thread beside it.
    """

    def take_weights(self) -> None:
        """Take the student's weights as they are now: those that the next round is sampled with. Collective."""
        ...

    def sample(self, batches: Mapping[int, Sequence[Asked]]) -> Iterator[tuple[int, list[Sampled]]]:
        """Sample this rank's batches, and yield each one's number and answers as soon as it is done.

        Args:
            batches: Prompts of each batch, by the batch's number.
        """
        ...

    def release(self) -> None:
        """Free what a round has needed. Collective."""
        ...

    def close(self) -> None:
        """Free everything: there are no more rounds, or this attempt is over."""
        ...
