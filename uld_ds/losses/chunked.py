"""The loss and its gradients in one pass over chunks of rows, so that logits exist for one chunk at a time.

Hidden states -> logits -> loss and d loss / d logits -> gradients of hidden states and head; autograd never sees a
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uld_ds.models.row_model import Head
from uld_ds.spectrum.spectrum import Spectrum


@dataclass(frozen=True)
class Rows:
    """Targets, weights and teacher outputs of A answer rows: all that the loss needs besides their logits.

    The S rows that stand for a segment come first.
    """

    ids: Tensor
    """[A] the right token of each row."""
    ce_weights: Tensor
    """[A] weight of each row's cross-entropy in the loss."""
    ce_slopes: Tensor
    """[A] d loss / d cross-entropy of each row.

    It is the row's weight, what the row does to its segment's likelihood, and how it scales a distance
    (``merge: chain``), which is known when the S rows have been seen.
    """
    uld_weights: Tensor
    """[S] weight of each segment's ULD distance in the loss."""
    spectrum: Spectrum
    """S rows: the teacher's spectra."""
    prepared: tuple[Any, ...]
    """Results of ``IdentityTerm.prepare``, one per term: of S rows each, or of A where the term looks at next rows."""
    term_weights: tuple[Tensor, ...]
    """Weights of each row's value in the loss, one tensor per term: [S], or [A] where it looks at next rows."""
    term_shares: tuple[Tensor, ...]
    """The same without the recipe's weights."""
    log_scale: Tensor | None
    """[S] log-scales of the student's distributions in nats; None where nothing is scaled."""
    earlier: Tensor
    """[P] rows whose log-probabilities add up to the log-scales."""
    earlier_segment: Tensor
    """[P] the segment that each of the ``earlier`` rows belongs to."""
    likelihood_loss: Tensor
    """Scalar part of the loss that is known beforehand; its gradient is among the slopes."""

    @property
    def num_compared(self) -> int:
        """The number S of rows that stand for a segment."""
        return len(self.spectrum)

    def note_scale_slopes(self, segments: slice, slopes: Tensor) -> None:
        """Add d loss / d log scale of some of the S segments to ``ce_slopes`` of the rows that make up their scale."""
        slope = slopes.new_zeros(self.num_compared)
        slope[segments] = slopes
        # The log scale is the sum of its rows' log-probabilities: each one's cross-entropy, negated.
        self.ce_slopes.index_add_(0, self.earlier, -slope[self.earlier_segment].to(self.ce_slopes.dtype))


NUM_PARTS = 4
"""The number of values that every row has, whatever the terms.

They are: cross-entropy, ULD distance, the head's share of that, and its error bound.
"""
OneChunk = Callable[[Tensor, Rows, slice], tuple[list[Tensor], Tensor]]
"""A function from logits [C, V] of some rows to their values and gradient.

The values are [C] each of the ``NUM_PARTS`` and of every term, the gradient is [C, V] d loss / d logits.
"""


def _chunks(hidden: Tensor, head: Head, num_compared: int) -> Iterator[slice]:
    """Yield slices of the rows whose logits may exist at a time: none has both compared and other rows."""
    for begin, part in ((0, hidden[:num_compared]), (num_compared, hidden[num_compared:])):
        if len(part) or len(hidden) == 0:
            yield from (slice(begin + chunk.start, begin + chunk.stop) for chunk in head.chunks(part))


class ChunkedLoss(torch.autograd.Function):
    """The loss of A rows as an autograd function whose forward pass computes the gradients, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        head: Head,
        rows: Rows,
        one_chunk: OneChunk,
    ) -> tuple[Tensor, ...]:
        """Compute the loss and keep its gradients for ``backward``.

        Args:
            ctx: autograd's context.
            hidden: [A, H] hidden states, the S compared rows first.
            weight: the head's weight, or None; like the three after it, given so that autograd sees it.
            bias: the head's bias, or None.
            down: the down matrix of the head's low-rank part, or None.
            up: the up matrix of the head's low-rank part, or None.
            head: the head that these tensors belong to.
            rows: targets, weights and teacher outputs of the A rows.
            one_chunk: computes values and gradient of a chunk of rows.

        Returns:
            The scalar loss, then [A] for each of the ``NUM_PARTS`` and of every term, not differentiable.
        """
        of_hidden, *of_head = ctx.needs_input_grad[:5]
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        gradients = _HeadGradients(head, of_head)
        results: list[list[Tensor]] = []
        for chunk in _chunks(hidden, head, rows.num_compared):
            logits = head.logits(hidden[chunk])
            parts, grad = one_chunk(logits, rows, chunk)
            results.append(parts)
            head.logit_map.backward_(grad, logits)
            gradients.add(grad, hidden[chunk], None if grad_hidden is None else grad_hidden[chunk])
        per_row = [torch.cat(parts) for parts in zip(*results, strict=True)]  # [A] each
        distance = per_row[1][: rows.num_compared]  # [S]
        loss = per_row[0] @ rows.ce_weights.to(per_row[0].dtype) + distance @ rows.uld_weights.to(distance.dtype)
        for value, of_rows in zip(per_row[NUM_PARTS:], rows.term_weights, strict=True):
            loss = loss + (value[: len(of_rows)] @ of_rows.to(value.dtype)).to(loss.dtype)
        loss = loss + rows.likelihood_loss.to(loss.dtype)
        ctx.gradients = [grad_hidden, *gradients.sums]
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias, down, up)]
        ctx.mark_non_differentiable(*per_row)
        return loss, *per_row

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_per_row: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that ``forward`` computed by ``grad_loss``.

        Raises:
            RuntimeError: the loss was differentiated before.
        """
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this loss was differentiated before: its gradients are gone")
        # In place: a copy of the head's gradient would be the largest tensor of a backward pass.
        scaled = [
            None if grad is None else grad.mul_(grad_loss.to(grad.dtype)).to(dtype)
            for grad, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


class _HeadGradients:
    """Gradients of a head's tensors, summed over chunks; nothing is computed for those that need none.

    Args:
        head: the head.
        wanted: whether its weight, bias, down and up matrix need a gradient, in this order.
    """

    def __init__(self, head: Head, wanted: Sequence[bool]) -> None:
        self._head = head
        # Thousands of rows add up here: in bf16 the sum would stop growing.
        self.sums = [
            torch.zeros_like(tensor, dtype=torch.float32) if need and tensor is not None else None
            for tensor, need in zip(head_tensors(head), wanted, strict=True)
        ]

    def add(self, grad: Tensor, hidden: Tensor, out: Tensor | None) -> None:
        """Add one chunk's share to the head's gradients, and write the gradient of its hidden states.

        Args:
            grad: [C, V] d loss / d logits, before the head's map.
            hidden: [C, H] hidden states.
            out: [C, H] to write their gradient to, or None.
        """
        head, low_rank = self._head, self._head.low_rank
        if head.weight is None:
            if out is not None:
                out.copy_(grad)
            return
        of_weight, of_bias, of_down, of_up = self.sums
        grad = grad.to(head.weight.dtype)
        if of_weight is not None:
            _add_product(of_weight, grad.t(), hidden)
        if of_bias is not None:
            of_bias += grad.sum(0)
        if out is not None:
            torch.mm(grad, head.weight, out=out)
        if low_rank is None:
            return
        grad, narrow = grad.to(low_rank.up.dtype), hidden.to(low_rank.down.dtype)
        if of_up is not None:
            _add_product(of_up, grad.t(), low_rank.inner(hidden))
        inner = ((grad @ low_rank.up) * low_rank.scale).to(low_rank.down.dtype)  # [C, rank]
        if of_down is not None:
            _add_product(of_down, inner.t(), narrow)
        if out is not None:
            out += inner @ low_rank.down


def head_tensors(head: Head) -> tuple[Tensor | None, ...]:
    """List the tensors of a head that may receive a gradient: weight, bias, down and up matrix, absent ones as None."""
    low_rank = (None, None) if head.low_rank is None else (head.low_rank.down, head.low_rank.up)
    return head.weight, head.bias, *low_rank


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total`` in float32, without a temporary of its size where the dtypes allow."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
