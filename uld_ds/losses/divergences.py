"""The classical objectives, for a student that has its teacher's tokenizer: KL either way, generalized Jensen-Shannon.

What is compared is the distribution over k + 1 outcomes: each of the teacher's top-k tokens, and "anything else".
With k the whole vocabulary there is nothing else, and the value is the classical one. With fewer it is a lower bound of
it: lumping outcomes together is a channel, and no channel makes two distributions easier to tell apart (the
data-processing inequality, which holds for all three).

With ``u_i = d value / d log q_i`` over the outcomes and ``U = sum_i u_i``, the gradient through the student's softmax
is ``dvalue/dz_i = u_i - q_i U`` for a token that is an outcome, and ``w_i (u_rest - q_rest U)`` for one of the others,
``w_i`` its share among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from uld_ds.losses.term import Compared, Row
from uld_ds.spectrum.checks import accumulation_dtype
from uld_ds.spectrum.top_tokens import TopTokens

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]

# What the teacher leaves for "anything else" is known to about this much (TopTokens.rest): a rest of nothing, which
# makes the reverse KL infinite, is not believed. Nor is a single token of which the teacher says that it cannot be.
_LEAST_REST = math.log(1e-6)
_LEAST_TOKEN = -50.0


class OutcomeTerm(NamedTuple):
    """Divergences of C rows with n outcomes each, and their slopes."""

    value: Tensor
    """[C] divergence of each row in nats."""
    slopes: Tensor
    """[C, n] d value / d the student's log-probability of each outcome.

    They hold up to a multiple of the student's probabilities, which no softmax notices.
    """


def divergence(log_p: Tensor, log_q: Tensor, kind: Divergence, beta: float = 0.5) -> OutcomeTerm:
    """Compute the divergence between the distributions P (teacher) and Q (student) over the same outcomes.

    ``forward_kl`` is ``KL(P, Q)``, ``reverse_kl`` is ``KL(Q, P)``, and ``jensen_shannon``, generalized as in GKD
    (Agarwal et al., arXiv 2306.13649, section 2), ``beta KL(P, M) + (1 - beta) KL(Q, M)`` with
    ``M = beta P + (1 - beta) Q``. An outcome that one side gives nothing costs what its definition says: 0, or
    infinity.

    Args:
        log_p: [C, n] natural log-probabilities of the teacher; no gradient.
        log_q: [C, n] natural log-probabilities of the student.
        kind: which divergence.
        beta: of generalized Jensen-Shannon, within (0, 1).
    """
    if kind == "forward_kl":
        return OutcomeTerm(_kl(log_p, log_q).sum(1), -log_p.exp())
    if kind == "reverse_kl":
        terms = _kl(log_q, log_p)
        return OutcomeTerm(terms.sum(1), terms)
    middle = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    own = (1 - beta) * _kl(log_q, middle)
    return OutcomeTerm((beta * _kl(log_p, middle) + own).sum(1), own)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Compute the summands of ``KL(A, B)``, [C, n]; 0 where A is."""
    return torch.where(log_a == -math.inf, 0.0, log_a.exp() * (log_a - log_b))


@dataclass(frozen=True)
class ClassicalTerm:
    """The ``IdentityTerm`` of classical distillation: a divergence over the teacher's top-k tokens and the rest."""

    weight: float
    """Weight of the term in the loss."""
    kind: Divergence = "forward_kl"
    """Which divergence the term computes."""
    beta: float = 0.5
    """Mixing weight of generalized Jensen-Shannon."""
    row: ClassVar[Row] = "first"

    @property
    def name(self) -> str:
        """The term's key in the objective and name among the metrics."""
        return "classical"

    def prepare(self, compared: Compared) -> TopTokens:
        """Return the teacher's top-k tokens of S segments, which ``add`` compares the student with."""
        return compared.top

    def add(self, logits: Tensor, log_normalizer: Tensor, prepared: TopTokens, weight: Tensor, grad: Tensor) -> Tensor:
        """Compute the divergence of C rows, [C] float64 nats, and add its gradient; see ``IdentityTerm.add``."""
        return lumped(
            logits,
            log_normalizer,
            prepared,
            weight,
            grad,
            kind=self.kind,
            beta=self.beta,
            has_rest=prepared.k < logits.shape[1],
            alive=prepared.log_probs[:, 0] > -math.inf,
        )


@torch.no_grad()
def lumped(
    logits: Tensor,
    log_normalizer: Tensor,
    top: TopTokens,
    weight: Tensor,
    grad: Tensor,
    *,
    kind: Divergence = "forward_kl",
    beta: float = 0.5,
    has_rest: bool = True,
    alive: Tensor,
) -> Tensor:
    """Compute the divergence over the outcomes "each token of ``top``" and "anything else", and add its gradient.

    Args:
        logits: [C, V] logits of the student.
        log_normalizer: [C] ``logsumexp(logits)``.
        top: [C, k] tokens of the student's vocabulary with the teacher's log-probabilities, those of a row different.
            Ids that the student does not have are "anything else".
        weight: [C] of each row's value in the loss.
        grad: [C, V] the loss's gradient with respect to ``logits``, to which the value's is added.
        kind: which divergence.
        beta: of generalized Jensen-Shannon.
        has_rest: False where ``top`` is the whole vocabulary. (It is also no outcome in a row of which the student
            has nothing else: what the teacher leaves there is rounding, or nothing that could be learned.)
        alive: [C] bool, False for padding.

    Returns:
        [C] float64 nats.
    """
    vocab, k = logits.shape[1], top.k
    there = top.ids < vocab  # [C, k]
    log_p = top.bounded_log_probs().masked_fill(~there, -math.inf)  # [C, k]
    places = top.ids.clamp(max=vocab)
    padded = torch.full(
        (len(logits), vocab + 1), -math.inf, dtype=accumulation_dtype(logits.dtype), device=logits.device
    )
    others = padded[:, :vocab].copy_(logits)  # [C, V] view: the scatter below takes the tokens of ``top`` out
    log_q = padded.gather(1, places).double() - log_normalizer[:, None].double()  # [C, k]
    padded.scatter_(1, places, -math.inf)
    log_others = others.logsumexp(1)  # [C]
    if has_rest:
        rest = (1 - log_p.exp().sum(1)).clamp(min=0).log().masked_fill(log_others == -math.inf, -math.inf)
        log_p = torch.cat([log_p, rest[:, None]], 1)
        log_q = torch.cat([log_q, (log_others.double() - log_normalizer.double())[:, None]], 1)
    value, slopes = divergence(_believed(log_p, kind, has_rest=has_rest), log_q, kind, beta)
    slopes = slopes.masked_fill(~alive[:, None], 0.0) * weight[:, None]  # [C, k + has_rest]
    of_outcomes = slopes - log_q.exp() * slopes.sum(1, keepdim=True)
    if has_rest:
        # [C, V]: each other token's share of "anything else"
        share = others.sub_(log_others.masked_fill(log_others == -math.inf, 0.0)[:, None]).exp_()
        grad.addcmul_(share.to(grad.dtype), of_outcomes[:, -1:].to(grad.dtype))
    of_tokens = of_outcomes[:, :k].masked_fill(~there, 0.0)
    grad.scatter_add_(1, places.clamp(max=vocab - 1), of_tokens.to(grad.dtype))
    return value.masked_fill(~alive, 0.0)


def _believed(log_p: Tensor, kind: Divergence, *, has_rest: bool) -> Tensor:
    if kind != "reverse_kl":
        return log_p
    least = torch.full_like(log_p[:1], _LEAST_TOKEN)
    if has_rest:
        least[:, -1] = _LEAST_REST
    return log_p.maximum(least)
