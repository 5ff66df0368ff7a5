"""The ULD distance of one chunk of student rows from their teachers' spectra, and its closed-form gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.spectrum.histogram import LevelCounts, LevelGrid
from uld_ds.spectrum.histogram_distance import compare
from uld_ds.spectrum.kernels import Workspace, count_levels, look_up, renormalize, top_probabilities
from uld_ds.uld.sorted import mean_of_equals

# What float32 arithmetic may add to the error that the grid explains, relative to the mass compared.
_ROUNDING = 2e-6


class ChunkDistance(NamedTuple):
    """The result of ``distance_of_chunk``: distances of ``R`` rows and what their gradient needs.

    Its large tensors live in the workspace: write the gradient before the next chunk.
    """

    terms: Tensor
    """``[4, R]``: distance, error bound, ``sum_j s_j p_j`` (0 if signs were not wanted), the head's distance."""
    largest: Tensor
    """``[R]``: the largest student probability, before scaling."""
    ratio: Tensor | None
    """``[R]`` or None: what the student's probabilities were multiplied by."""
    p: Tensor
    """``[R, V]``: scaled student probabilities outside the head, zeros inside it."""
    signed: Tensor | None
    """``[R, V]``: ``s_i p_i`` outside the head."""
    head: Tensor
    """``[R, k]``: the student's head, scaled."""
    signed_head: Tensor
    """``[R, k]``: ``s_i p_i`` within the head."""
    where: Tensor
    """``[R, k]``: the head's positions in the vocabulary."""

    def write_grad(self, factor: Tensor, probability_weight: Tensor | None, out: Tensor, accumulate: bool) -> None:
        """Write the gradient with respect to the student's logits into ``out``, or add it with ``accumulate``.

        It is ``factor * p_i (s_i - sum_j s_j p_j / ratio) + probability_weight * p_i / ratio``. ``factor`` and
        ``probability_weight`` are ``[R]``, ``out`` is ``[R, V]``.
        """
        assert self.signed is not None, "distance_of_chunk() was told that no signs are wanted"
        of_p = -factor * _divide(self.terms[2], self.ratio)
        if probability_weight is not None:
            of_p = of_p + _divide(probability_weight, self.ratio)
        factor, of_p = factor[:, None], of_p[:, None]
        at_head = factor * self.signed_head + of_p * self.head
        if out.dtype != self.p.dtype:
            grad = self.signed.mul_(factor).addcmul_(self.p, of_p).scatter_(1, self.where, at_head)
            out.add_(grad) if accumulate else out.copy_(grad)
        elif accumulate:
            out.addcmul_(self.signed, factor).addcmul_(self.p, of_p).scatter_add_(1, self.where, at_head)
        else:
            torch.mul(self.signed, factor, out=out).addcmul_(self.p, of_p).scatter_(1, self.where, at_head)


def distance_of_chunk(
    p: Tensor,
    teacher_head: Tensor,
    teacher_tail: LevelCounts,
    ratio: Tensor | None,
    grid: LevelGrid,
    work: Workspace,
    *,
    want_signs: bool = True,
    want_bound: bool = True,
) -> ChunkDistance:
    """Compute the ULD distance of ``R`` rows, ranks of the head pairwise and the rest by level counts.

    Removing the ``k`` largest from both sides leaves two spectra whose ranks still correspond, so the two parts of
    ``sum_i |p_(i) - q_(i)|`` simply add up.

    Args:
        p: ``[R, V]`` student probabilities in the workspace; overwritten.
        teacher_head: ``[R, K]`` descending, zero-padded.
        teacher_tail: the teacher's other probabilities, by bin of ``grid``.
        ratio: ``[R]`` or None, multiplies ``p``.
        grid: levels of both tails.
        work: scratch in which ``p`` lies.
        want_signs: False skips what only the gradient needs.
        want_bound: False skips the error bound, which comes out as NaN.
    """
    head, where = top_probabilities(p, min(teacher_head.shape[1], p.shape[1]))  # [R, k] each
    p.scatter_(1, where, 0.0)
    unit: Tensor | float = 2.0
    largest = head[:, 0]
    if ratio is not None:
        # What is scaled below the lowest level leaves the levels' masses: rounding is corrected before, by the sum.
        total = head.sum(-1, dtype=torch.float64) + p.sum(-1, dtype=torch.float64)
        exact = torch.where(total > 0, 1 / total, torch.ones_like(total)).to(p.dtype)
        largest = largest * exact
        p.mul_((ratio * exact)[:, None])
        head = head * (ratio * exact)[:, None]
        unit = 2 * torch.exp2(ratio.double().clamp_min(1).log2().ceil())[:, None]
    tail, index = count_levels(p, unit, grid, work)
    if ratio is None:
        head, tail = renormalize(head, tail, 1.0)
        largest = head[:, 0]
    gap = F.pad(head, (0, teacher_head.shape[1] - head.shape[1])) - teacher_head  # [R, K]
    head_distance = gap.abs().sum(-1)
    areas = compare(tail, teacher_tail, grid, want_bound=want_bound)

    signed_head = mean_of_equals(gap[:, : head.shape[1]].sign(), head) * head
    signed, slope = None, torch.zeros_like(head_distance)
    if want_signs:
        root = look_up(areas.root, index, grid, work)  # [R, V]
        signed = torch.abs(root, out=work.signs[: p.shape[0]])
        torch.sub(p, signed, out=signed).mul_(root).sign_().mul_(p)
        slope = signed.sum(-1) + signed_head.sum(-1)
    distance = head_distance + areas.distance
    bound = torch.full_like(distance, float("nan"))
    if areas.bound is not None:
        mass = teacher_head.sum(-1) + teacher_tail.masses.sum(-1) + (1.0 if ratio is None else ratio)
        bound = areas.bound + _ROUNDING * mass
    terms = torch.stack([distance, bound, slope, head_distance])
    return ChunkDistance(terms, largest, ratio, p, signed, head, signed_head, where)


def _divide(x: Tensor, ratio: Tensor | None) -> Tensor:
    return x if ratio is None else x / ratio.clamp_min(torch.finfo(ratio.dtype).tiny)
