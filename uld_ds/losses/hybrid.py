"""Hybrid: tokens that both vocabularies have are compared by identity, the others by their sorted probabilities.

The idea is TRL's GOLD; what is compared is defined here so that k tokens of the teacher give a lower bound, and all of
them the exact value, with no renormalization anywhere:

- *Matched.* Outcomes are the student's twins of the teacher's k most probable tokens, and "everything else": on each side
  what is left to 1. Between the two distributions over these: generalized Jensen-Shannon.
- *Unmatched.* The teacher's probabilities of the tokens without a twin among its k likeliest, ``p_1 >= ... >= p_m``,
  against the student's largest of tokens that are nobody's twin, ``q_1 >= q_2 >= ...``:
  ``sum_{i <= m} |p_i - q_i| + max(0, sum_{i > m} q_i - r)`` with ``r`` all that the teacher gives to tokens beyond the
  k. The distance of the two whole sorted lists is ``sum_i |p_i - q_i|``, which cannot be less, as what the teacher
  gives to further tokens without a twin is at most ``r``.

The value is the sum of both. With one vocabulary on both sides nothing is unmatched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.losses.divergences import lumped
from uld_ds.losses.term import Compared
from uld_ds.losses.token_mapping import NOWHERE, carried, images
from uld_ds.spectrum.checks import accumulation_dtype
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.uld.sorted import mean_of_equals


@dataclass(frozen=True)
class Split:
    """S rows of the teacher's top-k tokens, matched and not."""

    matched: TopTokens
    """[S, k] as tokens of the student."""
    unmatched: Tensor
    """[S, k] float64 probabilities, descending, then zeros."""
    num_unmatched: Tensor
    """[S] how many of them there are."""
    rest: Tensor
    """[S] float64: the probability of all other tokens."""
    alive: Tensor
    """[S] bool: False for padding."""

    def __getitem__(self, rows: slice) -> Split:
        return Split(**{name: value[rows] for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class HybridTerm:
    """An ``IdentityTerm``."""

    weight: float
    beta: float
    mapping: Tensor
    """[V_t + 1] from ``mapping_of``: the twin of each of the teacher's tokens."""

    @property
    def name(self) -> str:
        """Its key and metric."""
        return "hybrid"

    @torch.no_grad()
    def prepare(self, compared: Compared) -> Split:
        """As ``IdentityTerm`` says."""
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
        """As ``IdentityTerm`` says; [C] float64."""
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
        """[V] bool: which of the student's tokens are nobody's twin."""
        twins = self.mapping[self.mapping < vocab]
        return torch.ones(vocab, dtype=torch.bool, device=twins.device).index_fill_(0, twins, False)


def _sorted_rest(
    logits: Tensor, log_normalizer: Tensor, prepared: Split, twinless: Tensor, weight: Tensor, grad: Tensor
) -> Tensor:
    """The unmatched part of C rows, [C] float64; adds its gradient.

    With ``s_j = d value / d q_j`` it is ``dvalue/dz_j = q_j (s_j - sum_i s_i q_i)``.
    """
    dtype = accumulation_dtype(logits.dtype)
    q = (logits.to(dtype) - log_normalizer[:, None].to(dtype)).exp_()
    own = q * twinless
    k = prepared.unmatched.shape[1]
    largest, where = own.topk(min(k, own.shape[1]), dim=1)
    shown = F.pad(largest, (0, k - largest.shape[1])).double()
    is_paired = torch.arange(k, device=q.device) < prepared.num_unmatched[:, None]
    paired = torch.where(is_paired, shown - prepared.unmatched, 0.0)
    beyond = own.sum(1).double() - torch.where(is_paired, shown, 0.0).sum(1) - prepared.rest
    counts = beyond > 0
    value = paired.abs().sum(1) + beyond.clamp(min=0.0)
    signs = torch.where(is_paired, paired.sign(), counts[:, None].double())
    signs = mean_of_equals(signs, shown)[:, : largest.shape[1]].to(dtype)
    slopes = (twinless & counts[:, None]).to(dtype)
    # Where fewer than k tokens have no twin, topk fills up with twins (of 0 here), which have no part in this.
    slopes.scatter_(1, where, signs * twinless[where])
    alive = prepared.alive
    factor = (weight * alive).to(dtype)
    mean = (slopes * q).sum(1, keepdim=True)
    grad += (slopes.sub_(mean).mul_(q).mul_(factor[:, None])).to(grad.dtype)
    return value.masked_fill(~alive, 0.0)
