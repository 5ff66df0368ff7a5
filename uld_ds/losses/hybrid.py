"""The hybrid term: tokens that both vocabularies have are compared by identity, the others by sorted probability.

The idea is TRL's GOLD; what is compared is defined here so that k tokens of the teacher give a lower bound, and all of
them the exact value, with no renormalization anywhere:

- *Matched.* Outcomes are the student's twins of the teacher's top-k tokens, and "everything else": on each side what
  is left to 1. Between the two distributions over these: generalized Jensen-Shannon.
- *Unmatched.* The teacher's probabilities of the tokens without a twin among its top k, ``p_1 >= ... >= p_m``,
  against the student's largest of tokens that are nobody's twin, ``q_1 >= q_2 >= ...``:
  ``sum_{i <= m} |p_i - q_i| + max(0, sum_{i > m} q_i - r)`` with ``r`` all that the teacher gives to tokens beyond the
  k. The distance of the two whole sorted lists is ``sum_i |p_i - q_i|``, which cannot be less, as what the teacher
  gives to further tokens without a twin is at most ``r``.

The value is the sum of both. With one vocabulary on both sides nothing is unmatched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.losses.divergences import lumped
from uld_ds.losses.term import Compared, Row
from uld_ds.losses.token_mapping import NOWHERE, carried, images
from uld_ds.spectrum.checks import accumulation_dtype
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.uld.sorted import mean_of_equals


@dataclass(frozen=True)
class Split:
    """The teacher's top-k tokens of S segments, split into those with a twin and those without."""

    matched: TopTokens
    """[S, k] tokens with a twin, as tokens of the student."""
    unmatched: Tensor
    """[S, k] float64 probabilities of the tokens without a twin, descending, then zeros."""
    num_unmatched: Tensor
    """[S] number of tokens without a twin."""
    rest: Tensor
    """[S] float64: the probability of all other tokens."""
    alive: Tensor
    """[S] bool: False for padding."""

    def __getitem__(self, rows: slice) -> Split:
        return Split(**{name: value[rows] for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class HybridTerm:
    """The ``IdentityTerm`` that compares twins by identity and all other tokens by sorted probability."""

    weight: float
    """Weight of the term in the loss."""
    beta: float
    """Mixing weight of the generalized Jensen-Shannon divergence of matched tokens."""
    mapping: Tensor
    """[V_t + 1] from ``mapping_of``: the twin of each of the teacher's tokens."""
    row: ClassVar[Row] = "first"

    @property
    def name(self) -> str:
        """The term's key in the objective and name among the metrics."""
        return "hybrid"

    @torch.no_grad()
    def prepare(self, compared: Compared) -> Split:
        """Split the teacher's top-k tokens of S segments into those with a twin and those without."""
        p, ids = compared.top.bounded_log_probs().exp(), images(compared.top, self.mapping)
        is_unmatched = ids == NOWHERE
        return Split(
            matched=carried(ids, p),
            unmatched=p.masked_fill(~is_unmatched, 0.0).sort(1, descending=True).values,
            num_unmatched=is_unmatched.sum(1),
            rest=(1 - p.sum(1)).clamp(min=0.0),
            alive=compared.top.log_probs[:, 0] > float("-inf"),
        )

    @torch.no_grad()
    def add(self, logits: Tensor, log_normalizer: Tensor, prepared: Split, weight: Tensor, grad: Tensor) -> Tensor:
        """Compute the hybrid value of C rows, [C] float64 nats, and add its gradient; see ``IdentityTerm.add``."""
        value = lumped(
            logits,
            log_normalizer,
            prepared.matched,
            weight,
            grad,
            kind="jensen_shannon",
            beta=self.beta,
            alive=prepared.alive,
        )
        twinless = self._twinless(logits.shape[1])
        return value + _sorted_rest(logits, log_normalizer, prepared, twinless, weight, grad)

    def _twinless(self, vocab: int) -> Tensor:
        """Mark the student's tokens that are nobody's twin, [V] bool."""
        # One behind the last stands for all that the model has no logits of.
        twins = self.mapping.clamp(max=vocab)
        return torch.ones(vocab + 1, dtype=torch.bool, device=twins.device).index_fill_(0, twins, False)[:vocab]


def _sorted_rest(
    logits: Tensor, log_normalizer: Tensor, prepared: Split, twinless: Tensor, weight: Tensor, grad: Tensor
) -> Tensor:
    """Compute the unmatched part of C rows, [C] float64, and add its gradient to ``grad``.

    With ``s_j = d value / d q_j`` it is ``dvalue/dz_j = q_j (s_j - sum_i s_i q_i)``.
    """
    dtype = accumulation_dtype(logits.dtype)
    q = (logits.to(dtype) - log_normalizer[:, None].to(dtype)).exp_()  # [C, V]
    own = q * twinless
    k = prepared.unmatched.shape[1]
    largest, where = own.topk(min(k, own.shape[1]), dim=1)
    shown = F.pad(largest, (0, k - largest.shape[1])).double()  # [C, k]
    is_paired = torch.arange(k, device=q.device) < prepared.num_unmatched[:, None]  # [C, k]
    paired = torch.where(is_paired, shown - prepared.unmatched, 0.0)
    beyond = own.sum(1).double() - torch.where(is_paired, shown, 0.0).sum(1) - prepared.rest  # [C]
    counts = beyond > 0
    value = paired.abs().sum(1) + beyond.clamp(min=0.0)
    signs = torch.where(is_paired, paired.sign(), counts[:, None].double())
    signs = mean_of_equals(signs, shown)[:, : largest.shape[1]].to(dtype)
    slopes = (twinless & counts[:, None]).to(dtype)  # [C, V]
    # Where fewer than k tokens have no twin, topk fills up with twins (of 0 here), which have no part in this.
    slopes.scatter_(1, where, signs * twinless[where])
    alive = prepared.alive
    factor = (weight * alive).to(dtype)
    mean = (slopes * q).sum(1, keepdim=True)
    grad += (slopes.sub_(mean).mul_(q).mul_(factor[:, None])).to(grad.dtype)
    return value.masked_fill(~alive, 0.0)
