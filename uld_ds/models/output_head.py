"""Output heads that lend their weights to a function, so that it can make logits a chunk at a time.

Under ZeRO-3 a weight is whole only while its own module runs. A head therefore calls the function from inside its
forward: its weights are gathered once for all chunks, and by DeepSpeed's own hooks, which also take care of their
gradients. A LoRA layer (PEFT's, known by its structure) keeps its weights in three modules or more, one gathered
apart from the other: there the forwards are nested, and the function runs in the innermost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T = TypeVar("T")

_LORA_ATTRIBUTES = ("base_layer", "lora_A", "lora_B", "scaling", "active_adapters")


class OpenLinear(nn.Linear):
    """A linear layer that lends its weight to a function, inside its own forward."""

    # Added to every element of the weight while a head is measured; see shifted_adapters.
    shift: float = 0.0

    def forward(self, hidden: Tensor, use: Callable[[Tensor, Tensor, Tensor | None], T] | None = None) -> Any:
        """Apply the layer to ``hidden`` [..., in], or return what ``use(hidden, weight, bias)`` returns, if given."""
        weight = self.weight + self.shift if self.shift else self.weight
        return F.linear(hidden, weight, self.bias) if use is None else use(hidden, weight, self.bias)


@dataclass(frozen=True)
class LowRank:
    """The part that LoRA adds to logits [N, V]: ``(hidden @ down.T * scale) @ up.T``, R ranks over active adapters."""

    down: Tensor
    """[R, H], LoRA's A."""
    up: Tensor
    """[V, R], LoRA's B."""
    scale: Tensor
    """[R] float32; no gradient."""

    def inner(self, hidden: Tensor) -> Tensor:
        """Project hidden states [N, H] down to [N, R], scaled: what ``up`` is applied to."""
        return (F.linear(hidden.to(self.down.dtype), self.down) * self.scale).to(self.down.dtype)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Compute the logits [N, V] that LoRA adds for hidden states [N, H]."""
        return F.linear(self.inner(hidden), self.up)


class HeadWeights(NamedTuple):
    """All weights of a head, whole."""

    weight: Tensor
    """[V, H] of the linear layer."""
    bias: Tensor | None
    """[V] of the linear layer, if it has one."""
    low_rank: LowRank | None
    """LoRA's part; None without LoRA, or while no adapter is active."""


def open_head(head: nn.Module) -> str | None:
    """Make ``lend`` possible for a head, in place, or say why it is not.

    Returns:
        None, or what the head is or has that keeps it from lending its weights, to follow "its output head".
    """
    if _is_lora(head):
        problem = _lora_problem(head)
        if problem is not None:
            return problem
    elif not _is_linear(head):
        return "is no plain linear layer"
    for linear in _linears(head):
        linear.__class__ = OpenLinear
    return None


def lend(head: nn.Module, hidden: Tensor, use: Callable[[Tensor, HeadWeights], T]) -> T:
    """Call ``use(hidden, weights)`` while all of the head's weights are whole, and return what it returns.

    Args:
        head: Head that ``open_head`` has found nothing against.
        hidden: [N, H]. Goes through the head, because ZeRO-3's hooks mark a module's backward by its inputs.
        use: Function of hidden states and whole weights.
    """
    return _nested(_linears(head), hidden, lambda hidden, parts: use(hidden, _joined(head, parts)))


@contextmanager
def shifted_adapters(head: nn.Module) -> Iterator[None]:
    """Let ``head`` run as if every B of its adapters were larger by one.

    LoRA starts with B = 0, where a wrong low-rank part could not be told from a right one. Neither parameters nor
    their shards are touched.
    """
    ups = _linears(head)[2::2]
    try:
        for up in ups:
            up.shift = 1.0  # type: ignore[assignment]
        yield
    finally:
        for up in ups:
            del up.shift


_Part = tuple[Tensor, Tensor | None]


def _nested(
    modules: Sequence[nn.Module],
    hidden: Tensor,
    use: Callable[[Tensor, list[_Part]], T],
    parts: Sequence[_Part] = (),
) -> T:
    if not modules:
        return use(hidden, list(parts))

    def inside(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> T:
        return _nested(modules[1:], hidden, use, [*parts, (weight, bias)])

    result: T = modules[0](hidden, inside)
    return result


def _joined(head: nn.Module, parts: list[_Part]) -> HeadWeights:
    (weight, bias), *adapters = parts
    if not adapters:
        return HeadWeights(weight, bias, None)
    downs, ups = [down for down, _ in adapters[::2]], [up for up, _ in adapters[1::2]]
    scales: Any = head.scaling
    scale = torch.cat(  # [R]
        [
            torch.full((len(down),), float(scales[name]), device=down.device)
            for name, down in zip(_active_adapters(head), downs, strict=True)
        ]
    )
    # [R, H] and [V, R]. One adapter's matrices are used as they are; autograd takes a concatenation apart again.
    down, up = (downs[0], ups[0]) if len(downs) == 1 else (torch.cat(downs), torch.cat(ups, dim=1))
    return HeadWeights(weight, bias, LowRank(down, up, scale))


def _linears(head: Any) -> list[nn.Module]:
    """List the linear layers that make up a head: the base, then A and B of every adapter in use."""
    if not _is_lora(head):
        return [head]
    adapters = [part for name in _active_adapters(head) for part in (head.lora_A[name], head.lora_B[name])]
    return [head.base_layer, *adapters]


def _active_adapters(head: Any) -> list[str]:
    """List the adapters that add something: not those switched off, nor those merged into the base's weight."""
    if getattr(head, "disable_adapters", False) or getattr(head, "merged", False):
        return []
    return [name for name in head.active_adapters if name in head.lora_A]


def _is_linear(module: object) -> bool:
    # Exactly: a subclass may do anything in its forward.
    return type(module) in (nn.Linear, OpenLinear)


def _is_lora(head: nn.Module) -> bool:
    return all(hasattr(head, name) for name in _LORA_ATTRIBUTES)


def _lora_problem(head: Any) -> str | None:
    if not _is_linear(head.base_layer):
        return "is LoRA over something else than a plain linear layer"
    if getattr(head, "disable_adapters", False) and getattr(head, "merged", False):
        return "has merged adapters switched off, which its own forward takes out of the weight"
    for name in _active_adapters(head):
        if name in getattr(head, "lora_variant", {}) or getattr(head, "use_dora", {}).get(name):
            return f"has an adapter {name!r} that is not plain LoRA (DoRA or another variant)"
        if not (_is_linear(head.lora_A[name]) and _is_linear(head.lora_B[name])):
            return f"has an adapter {name!r} of something else than plain linear layers"
        if head.lora_A[name].bias is not None or head.lora_B[name].bias is not None:
            return f"has an adapter {name!r} with a bias"
        dropout = getattr(head, "lora_dropout", {})
        # Dropout sits before A only: hidden states that differ between base and adapter.
        if name in dropout and getattr(dropout[name], "p", 0.0) > 0:
            return f"has an adapter {name!r} with dropout"
    return None
