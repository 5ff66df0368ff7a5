"""The student whole on every rank for a while, outside of DeepSpeed: what samples answers token by token.

Under ZeRO-3 each forward gathers all weights, for one token as for a batch of whole sequences. So they are gathered
once, into a model of the same structure that DeepSpeed knows nothing of.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from torch import nn

from uld_ds.utils.host_memory import return_free_memory

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_OF_DEEPSPEED = ("_original_parameters", "_external_params", "_ds_child_entered")


class PlainCopy:
    """A copy of the student in evaluation mode, in its precision, with logits that are the engine's bit for bit.

    It has no weights but between ``fill`` and ``free``. Frozen weights that are whole on this rank are not copied:
    nothing changes them.

    Args:
        student: DeepSpeed engine around a RowModel.
    """

    def __init__(self, student: Any) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.lm: Any = self._structure_of(student.module.lm)
        """The language model."""
        self.is_filled = False

    @torch.no_grad()
    def fill(self) -> int:
        """Copy the student's weights of now; return the bytes that this takes. Collective."""
        taken = 0
        for theirs, ours in self._pairs:
            with deepspeed.zero.GatheredParameters([theirs]):
                ours.data = theirs.data.clone(memory_format=torch.contiguous_format)
            taken += ours.nbytes
        self.is_filled = True
        return taken

    def free(self) -> None:
        """Let go of the weights."""
        for _, ours in self._pairs:
            ours.data = torch.empty(0, dtype=ours.dtype, device=ours.device)
        self.is_filled = False
        return_free_memory()

    def _structure_of(self, lm: nn.Module) -> nn.Module:
        """Copy a model with empty parameters in place of its own, and without what DeepSpeed has hung onto it."""
        memo: dict[int, Any] = {}
        for module in lm.modules():
            memo |= {id(value): replaced for value, replaced in _without_deepspeed(module)}
            for parameter in module.parameters(recurse=False):
                if id(parameter) in memo:
                    continue
                if parameter.requires_grad or _is_sharded(parameter):
                    empty = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
                    memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
                    self._pairs.append((parameter, memo[id(parameter)]))
                else:
                    # With the scales of a weight in 4 bits, which its layer holds, too.
                    for frozen in (parameter, getattr(parameter, "quant_state", None)):
                        memo[id(frozen)] = frozen
            memo[id(module._parameters)] = {
                name: None if parameter is None else memo[id(parameter)]
                for name, parameter in module._parameters.items()
            }
        plain = copy.deepcopy(lm, memo).eval()
        for module in plain.modules():
            for name in [*_OF_DEEPSPEED, *(name for name in vars(module) if name.startswith("ds_"))]:
                vars(module).pop(name, None)
        return plain


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradient checkpointing then, and each part of it back afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _without_deepspeed(module: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Yield what of a module must not be copied, and what the copy has in its place."""
    for name in _HOOKS:
        hooks = getattr(module, name)
        # Flags of a hook that is gone mean nothing.
        ours = {key: hook for key, hook in hooks.items() if not _is_of_deepspeed(hook)}
        yield hooks, type(hooks)(ours)
    for name, value in vars(module).items():
        # Not plain values: they are one object with all others that are equal.
        if (name in _OF_DEEPSPEED or name.startswith("ds_")) and isinstance(value, dict | set | list):
            yield value, None


def _is_of_deepspeed(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "deepspeed"
