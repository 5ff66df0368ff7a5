"""A counter of the bytes that ZeRO-3 gathers of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn


class GatherCounter:
    """Counter of the bytes this rank receives of a sharded model's parameters, each time DeepSpeed gathers them.

    Args:
        module: Module sharded by ``deepspeed.initialize`` at stage 3. Anything else gathers nothing.
        ranks: Number of ranks among which it is sharded.
    """

    def __init__(self, module: nn.Module, ranks: int) -> None:
        self.bytes = 0
        self._received = (ranks - 1) / ranks
        for parameter in module.parameters():
            # Every parameter carries the functions that gather it, alone or with others.
            if hasattr(parameter, "all_gather_coalesced"):
                parameter.all_gather_coalesced = self._counting(parameter.all_gather_coalesced)
                one: Any = parameter
                one.all_gather = self._counting_one(one, one.all_gather)

    def _counting(self, gather: Callable[..., Any]) -> Callable[..., Any]:
        def counted(params: Iterable[nn.Parameter], *rest: Any, **options: Any) -> Any:
            params = list(params)
            self._count(params)
            return gather(params, *rest, **options)

        return counted

    def _counting_one(self, parameter: nn.Parameter, gather: Callable[..., Any]) -> Callable[..., Any]:
        def counted(param_list: list[nn.Parameter] | None = None, *rest: Any, **options: Any) -> Any:
            self._count([parameter] if param_list is None else param_list)
            return gather(param_list, *rest, **options)

        return counted

    def _count(self, params: Iterable[Any]) -> None:
        self.bytes += sum(int(p.ds_numel * p.ds_tensor.element_size() * self._received) for p in params)
