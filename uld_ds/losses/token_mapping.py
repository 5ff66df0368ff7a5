"""The teacher's top-k tokens, carried to the student's vocabulary by how the two vocabularies relate."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from uld_ds.losses.term import Compared
from uld_ds.spectrum.top_tokens import TopTokens

NOWHERE = 2**31 - 1
"""Id of no token, larger than that of any: where the student has no token to carry a probability to."""

# Log-probabilities that have been float16 are this near to what they were, relative to their size.
_ROUNDING = 1e-3


def mapping_of(relation: NDArray[np.int64], device: torch.device | str = "cpu") -> Tensor:
    """Turn a relation between vocabularies, [V_t] ids or -1, into a mapping for ``images``, [V_t + 1] int64.

    Its last entry is for ids that the teacher's tokenizer does not know; -1 becomes NOWHERE.
    """
    mapping = torch.from_numpy(np.append(relation, -1))
    return mapping.masked_fill(mapping < 0, NOWHERE).to(device)


def outcomes_of(outcomes: NDArray[np.int64]) -> Tensor:
    """Turn the outcomes of the student's tokens, [V_s], into [V_s + 1]; the last is for ids that nobody knows."""
    return torch.from_numpy(np.append(outcomes, outcomes.max(initial=-1) + 1))


def images(top: TopTokens, mapping: Tensor) -> Tensor:
    """Look up the student's token for each of the teacher's top-k tokens, [S, k], or NOWHERE."""
    return mapping[top.ids.clamp(max=len(mapping) - 1)]


def carried(ids: Tensor, probabilities: Tensor) -> TopTokens:
    """Add up the probabilities that are carried to the same token of the student.

    NOWHERE gets none, and a token that has none becomes NOWHERE.

    Args:
        ids: [S, n] student tokens or NOWHERE.
        probabilities: [S, n] float64.

    Returns:
        [S, n] tokens: no two ids of a row the same but NOWHERE, of log-probability -inf.
    """
    ids, order = ids.sort(1)
    group = F.pad(ids[:, 1:] != ids[:, :-1], (1, 0)).cumsum(1)  # [S, n]: number of each entry's id
    masses = torch.zeros_like(probabilities).scatter_add_(1, group, probabilities.gather(1, order))
    found = torch.full_like(ids, NOWHERE).scatter_(1, group, ids)
    found = torch.where(masses > 0, found, NOWHERE)
    return TopTokens(found, masses.masked_fill(found == NOWHERE, 0.0).log())


def continued(compared: Compared, mapping: Tensor) -> TopTokens:
    """Carry the teacher's top-k tokens to the student's vocabulary, with what is known to go on along the text.

    As ``carried`` does it, but for the segment's bytes, which are what the teacher's first token there is the beginning
    of, and begin with the student's first token there. The teacher's probability of all of them is taken from its own
    first token's image and given to that token. Its first token is found in ``top`` by its probability; where ``top``
    ends before it, the mass comes out of what is not in ``top``.

    Returns:
        [S, k + 1] tokens of the student.
    """
    top, ids = compared.top, images(compared.top, mapping)
    p = top.bounded_log_probs().exp()
    gap = (top.log_probs - compared.first_log_probs[:, None]).abs().double()  # [S, k]
    # Log-probabilities of cached or stored teacher outputs are rounded; the first token's is not.
    tolerance = 1e-5 + _ROUNDING * compared.first_log_probs.abs().double()[:, None]
    # Of several as likely: one that moves nothing.
    stays = (gap <= gap.amin(1, keepdim=True) + 1e-9) & (ids == compared.student_ids[:, None])
    first = torch.where(stays, -1.0, gap).argmin(1, keepdim=True)  # [S, 1]
    is_there = compared.first_log_probs[:, None] >= top.log_probs[:, -1:] - tolerance
    # [S, 1]: mass that there is to move
    held = torch.where(is_there, p.gather(1, first), 1 - p.sum(1, keepdim=True))
    moved = compared.log_probs.double().exp()[:, None].minimum(held.clamp(min=0.0))
    p = p.scatter_add(1, first, torch.where(is_there, -moved, 0.0))
    return carried(torch.cat([ids, compared.student_ids[:, None]], 1), torch.cat([p, moved], 1))
