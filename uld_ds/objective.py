"""The training objective: cross-entropy on the answer plus the ULD distance to the teacher's spectra.

``L = ce * sum_i a_i CE_i + uld * sum_s b_s W1(student_s, teacher_s)`` with row weights ``a``, ``b`` from
normalisation.py (Boizard et al., arXiv 2402.12030, with segments in place of truncated positions).

Loss and gradients are computed in one pass over chunks of rows: hidden states -> logits -> loss and d loss / d logits
-> gradients of hidden states and head. Logits exist for a chunk at a time, and autograd never sees a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.data.windows import SideBatch
from uld_ds.language_model import Head
from uld_ds.normalisation import RowWeights
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum import Spectrum
from uld_ds.uld import uld_distance, uld_value_and_grad

# Rows of a micro-batch whose student entropy is measured: enough for a curve, few enough to cost nothing.
_ENTROPY_ROWS = 32


@dataclass(frozen=True)
class _Rows:
    """Everything the loss needs to know about A answer rows besides their logits."""

    ids: Tensor
    """[A] the right token."""
    ce_weights: Tensor
    """[A] of each row's cross-entropy in the loss."""
    uld_weights: Tensor
    """[A] of each row's ULD distance in the loss; 0 where no segment begins."""
    begins_segment: Tensor
    """[A] bool."""
    spectrum: Spectrum | None
    """[A] rows; those where no segment begins are stand-ins. None when no row begins one."""

    def __getitem__(self, chunk: slice) -> _Rows:
        spectrum = None if self.spectrum is None else self.spectrum[chunk]
        return _Rows(
            self.ids[chunk],
            self.ce_weights[chunk],
            self.uld_weights[chunk],
            self.begins_segment[chunk],
            spectrum,
        )


@dataclass(frozen=True)
class Objective:
    """Cross-entropy and ULD, weighed as the recipe says."""

    settings: ObjectiveSettings

    def __call__(
        self, hidden: Tensor, head: Head, batch: SideBatch, spectrum: Spectrum, weights: RowWeights
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch and its parts.

        Args:
            hidden: [A, H] the student's, one row per answer token, differentiable.
            head: the student's; its weight and bias receive gradients.
            batch: the student's side.
            spectrum: [S] the teacher's, one row per segment.
            weights: of the A and S rows.

        Returns:
            A scalar, and detached parts that add up over the micro-batches and ranks of a step: ``ce``, ``uld``
            (without the recipe's weights, so that they compare across recipes), ``uld_head`` (the share of ``uld``
            among the largest probabilities), ``uld_bound`` (how far ``uld`` may be from the exact distance),
            ``teacher_entropy`` (nats, weighed like ``uld``), ``student_entropy`` (nats, summed over a sample of
            ``student_entropy_rows`` rows). Beside them ``token_nats`` [A].

        Raises:
            ValueError: the spectrum has another number of rows than there are segments.
        """
        if len(spectrum) != len(batch.segment_answers):
            raise ValueError(f"{len(spectrum)} teacher rows for {len(batch.segment_answers)} segments: not aligned")
        rows = self._rows(batch, spectrum, weights)
        one_chunk = self._closed_form if self._has_closed_form(spectrum) else self._by_autograd
        loss, *per_row = _Chunked.apply(hidden, *_tensors(head), head, rows, one_chunk)
        nats, distance, head_distance, bound = (part.detach() for part in per_row)
        segments = weights.segments.to(distance.dtype)
        with torch.no_grad():
            counted = (weights.answers[:_ENTROPY_ROWS] > 0).float()
            student_entropy = entropy(head.logits(hidden[:_ENTROPY_ROWS])) @ counted
        return loss, {
            "token_nats": nats,
            "ce": nats @ weights.answers.to(nats.dtype),
            "uld": distance[batch.segment_answers] @ segments,
            "uld_head": head_distance[batch.segment_answers] @ segments,
            "uld_bound": bound[batch.segment_answers] @ segments,
            "teacher_entropy": spectrum.entropy().to(segments.dtype) @ segments,
            "student_entropy": student_entropy,
            "student_entropy_rows": counted.sum(),
        }

    def _rows(self, batch: SideBatch, spectrum: Spectrum, weights: RowWeights) -> _Rows:
        num_answers = len(batch.answer_ids)
        of_answer = torch.zeros(num_answers, dtype=torch.long, device=batch.answer_ids.device)
        of_answer[batch.segment_answers] = torch.arange(len(spectrum), device=of_answer.device)
        uld_weights = weights.answers.new_zeros(num_answers)
        uld_weights[batch.segment_answers] = weights.segments
        begins = torch.zeros(num_answers, dtype=torch.bool, device=of_answer.device)
        begins[batch.segment_answers] = True
        return _Rows(
            ids=batch.answer_ids,
            ce_weights=weights.answers * self.settings.ce,
            uld_weights=uld_weights * self.settings.uld,
            begins_segment=begins,
            spectrum=spectrum[of_answer] if len(spectrum) else None,
        )

    def _has_closed_form(self, spectrum: Spectrum) -> bool:
        return self.settings.method == "linear" and self.settings.student_temperature == 1.0 and len(spectrum) > 0

    def _closed_form(self, logits: Tensor, rows: _Rows) -> tuple[list[Tensor], Tensor]:
        """Parts [4, C] and d loss / d logits [C, V]: one softmax serves both terms."""
        assert rows.spectrum is not None
        grad = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        terms = uld_value_and_grad(
            logits,
            rows.spectrum,
            mask=rows.begins_segment,
            weight=rows.uld_weights,
            probability_weight=rows.ce_weights,
            out=grad,
            # One look at the whole loss per step finds NaN, without waiting for the device in every chunk.
            check=False,
        )
        targets = rows.ids[:, None]
        nats = terms.log_normaliser - logits.gather(1, targets).squeeze(1)
        grad.scatter_add_(1, targets, -rows.ce_weights[:, None].to(grad.dtype))
        assert terms.bound is not None
        return [nats, terms.distance, terms.head, terms.bound], grad

    def _by_autograd(self, logits: Tensor, rows: _Rows) -> tuple[list[Tensor], Tensor]:
        """The same for any method and temperature, by autograd over one chunk."""
        with torch.enable_grad():
            z = logits.detach().float().requires_grad_()
            nats = F.cross_entropy(z, rows.ids, reduction="none")
            if rows.spectrum is None:
                distance = torch.zeros_like(nats)
            else:
                distance = uld_distance(
                    z,
                    rows.spectrum,
                    student_temperature=self.settings.student_temperature,
                    method=self.settings.method,
                    mask=rows.begins_segment,
                )
            loss = nats @ rows.ce_weights + distance.to(nats.dtype) @ rows.uld_weights
            (grad,) = torch.autograd.grad(loss, z)
        unknown = torch.full_like(nats.detach(), float("nan"))
        return [nats.detach(), distance.detach(), unknown, unknown], grad


OneChunk = Callable[[Tensor, _Rows], tuple[list[Tensor], Tensor]]


class _Chunked(torch.autograd.Function):
    """Forward computes loss and gradients chunk by chunk; backward only scales what is there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        head: Head,
        rows: _Rows,
        one_chunk: OneChunk,
    ) -> tuple[Tensor, ...]:
        of_hidden, *of_head = ctx.needs_input_grad[:5]
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        gradients = _HeadGradients(head, of_head)
        results: list[list[Tensor]] = []
        for chunk in head.chunks(hidden):
            logits = head.logits(hidden[chunk])
            parts, grad = one_chunk(logits, rows[chunk])
            results.append(parts)
            head.logit_map.backward_(grad, logits)
            gradients.add(grad, hidden[chunk], None if grad_hidden is None else grad_hidden[chunk])
        per_row = [torch.cat(parts) for parts in zip(*results, strict=True)]
        loss = per_row[0] @ rows.ce_weights.to(per_row[0].dtype) + per_row[1] @ rows.uld_weights.to(per_row[1].dtype)
        ctx.save_for_backward(grad_hidden, *gradients.sums)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias, down, up)]
        ctx.mark_non_differentiable(*per_row)
        return loss, *per_row

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_per_row: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if grad is None else (grad * grad_loss.to(grad.dtype)).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


class _HeadGradients:
    """Sums over chunks of what a head's tensors receive; nothing is computed for those that need no gradient.

    Args:
        head: the head.
        wanted: of its weight, bias, down and up matrix, in this order.
    """

    def __init__(self, head: Head, wanted: Sequence[bool]) -> None:
        self._head = head
        # Thousands of rows add up here: in bf16 the sum would stop growing.
        self.sums = [
            torch.zeros_like(tensor, dtype=torch.float32) if need and tensor is not None else None
            for tensor, need in zip(_tensors(head), wanted, strict=True)
        ]

    def add(self, grad: Tensor, hidden: Tensor, out: Tensor | None) -> None:
        """Adds one chunk's share, and writes the gradient of its hidden states.

        Args:
            grad: [C, V] of the loss by the logits, before the head's map.
            hidden: [C, H].
            out: [C, H] to write to, or None.
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
        inner = ((grad @ low_rank.up) * low_rank.scale).to(low_rank.down.dtype)
        if of_down is not None:
            _add_product(of_down, inner.t(), narrow)
        if out is not None:
            out += inner @ low_rank.down


def _tensors(head: Head) -> tuple[Tensor | None, ...]:
    """All that may receive a gradient: weight, bias, down and up matrix."""
    low_rank = (None, None) if head.low_rank is None else (head.low_rank.down, head.low_rank.up)
    return head.weight, head.bias, *low_rank


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` into float32, without a temporary of its size where the types allow."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def entropy(logits: Tensor) -> Tensor:
    """Of each row's distribution, in nats: [N, V] -> [N]. Entries of -inf count nothing."""
    log_p = logits.float().log_softmax(-1)
    return -torch.where(log_p > float("-inf"), log_p.exp() * log_p, log_p.new_zeros(())).sum(-1)
