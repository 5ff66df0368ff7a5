"""The process group, as the few things the rest needs of it."""

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
    """This process's place among all."""

    rank: int
    size: int

    @classmethod
    def current(cls) -> Ranks:
        """The running process group's, or a single rank when there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls(0, 1)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over all ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """Elementwise maximum over all ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def union(self, numbers: Sequence[int]) -> list[int]:
        """What any rank has, sorted, each once. Collective."""
        return sorted({number for of_rank in self.gather(list(numbers)) for number in of_rank})

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in order of rank. Collective."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        if self.size > 1:
            dist.barrier()

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values, op=operation)
        return values


def device_for(local_rank: int, *, on_gpu: bool) -> torch.device:
    """The device this rank computes on."""
    return torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
