"""The gate of the ULD distance, which counts where the student ranks the right token well (``objective.uld_gate``).

A spectrum says how sure the teacher is, never of which token. A student that is led to be as sure as its teacher
before it knows of what becomes sure of the wrong token; the gate spares it that.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def passes_gate(logits: Tensor, ids: Tensor, rank: int | None) -> Tensor:
    """Tell whether each row's right token is among the student's top ``rank`` tokens, [C] bool.

    Args:
        logits: [C, V] logits of the student, whose temperature changes no rank.
        ids: [C] the token that each row should predict.
        rank: at least 1; None: all rows pass.

    Returns:
        [C] bool. Tokens with the same logit as the right one do not stand before it.
    """
    if rank is None:
        return torch.ones_like(ids, dtype=torch.bool)
    return (logits > logits.gather(1, ids[:, None])).sum(1) < rank
