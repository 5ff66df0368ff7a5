"""The process group of the ranks: sums, maxima, gathers and barriers that also work with a single rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among all ranks, with the collective operations over them."""

    rank: int
    """Number of this rank, from 0."""
    size: int
    """Number of all ranks."""

    @classmethod
    def current(cls) -> Ranks:
        """Describe the running process group, or a single rank when there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls(0, 1)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum tensors of one shape elementwise over all ranks, and leave this rank's as it is. Collective."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """Take the elementwise maximum over all ranks, and leave this rank's tensor as it is. Collective."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def union(self, numbers: Sequence[int]) -> list[int]:
        """Unite the numbers of all ranks, sorted, each once. Collective."""
        return sorted({number for of_rank in self.gather(list(numbers)) for number in of_rank})

    def gather(self, value: T) -> list[T]:
        """Gather every rank's value, in order of rank; values are pickled. Collective."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until every rank has called this. Collective."""
        if self.size > 1:
            dist.barrier()

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values, op=operation)
        return values


def device_for(local_rank: int, *, on_gpu: bool) -> torch.device:
    """Choose the device that this rank computes on: the GPU of its local rank, or the CPU."""
    return torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
