"""The sorted form of the ULD distance: slow, differentiable by autograd, the reference everything is held to.

``W1(p, q) = sum_i |p_(i) - q_(i)|`` over probabilities in descending order, the shorter list padded with
zeros (Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
arXiv 2402.12030, section 3). Works in float32 or, given float64 inputs, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.spectrum.checks import check_logits, check_normalizers


def probabilities(logits: Tensor, temperature: float, dtype: torch.dtype, name: str) -> tuple[Tensor, Tensor]:
    """Compute the softmax of ``logits [N, V]`` in ``dtype``, and which rows ``[N]`` hold a distribution at all.

    A row of nothing but -inf (padding) comes back as anything finite: it is for the caller to leave out.

    Raises:
        ValueError: ``logits`` are not floating-point ``[N, V]``, or a row holds NaN or +inf (named).
    """
    check_logits(logits, name)
    scaled = logits.to(dtype) / temperature
    check_normalizers(torch.logsumexp(scaled.detach(), dim=-1), name)
    alive = (scaled.detach() > float("-inf")).any(dim=-1)
    # softmax of an all -inf row is NaN, and so would be its gradient: such rows never enter it.
    safe = torch.where(alive[:, None], scaled, torch.zeros((), dtype=dtype, device=logits.device))
    return torch.softmax(safe, dim=-1), alive


def pad_to(x: Tensor, width: int) -> Tensor:
    """Append zeros to ``x [N, W]`` up to ``width`` columns."""
    return F.pad(x, (0, width - x.shape[1]))


def mean_of_equals(x: Tensor, ordered: Tensor) -> Tensor:
    """Replace entries of ``x [N, k]`` at equal values of ``ordered [N, k]`` (sorted) by their mean.

    Which of two equal probabilities comes first is an accident of the sort, and with bfloat16 logits equal ones are
    common among the largest. The mean is the subgradient that does not depend on the order of the vocabulary.
    """
    group = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0)).cumsum(-1)  # [N, k]: number of each entry's value
    sums = torch.zeros_like(x).scatter_add(1, group, x)
    sizes = torch.zeros_like(x).scatter_add(1, group, torch.ones_like(x))
    return (sums / sizes.clamp_min(1)).gather(1, group)


def sorted_distance(p: Tensor, q: Tensor) -> Tensor:
    """Compute the ULD distance ``sum_i |p_(i) - q_(i)|`` of ``p [N, V_p]`` and ``q [N, V_q]`` by sorting: ``[N]``.

    Equal probabilities share their gradient (see ``mean_of_equals``).
    """
    p_sorted = p.sort(dim=-1, descending=True).values
    if p.requires_grad:
        shared = mean_of_equals(p_sorted, p_sorted.detach())
        p_sorted = p_sorted.detach() + (shared - shared.detach())
    q_sorted = q.sort(dim=-1, descending=True).values
    width = max(p.shape[1], q.shape[1])
    return (pad_to(p_sorted, width) - pad_to(q_sorted, width)).abs().sum(dim=-1)
