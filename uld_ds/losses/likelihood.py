"""Likelihood matching: the divergence between the probabilities that both models give to the *same bytes*.

A segment is a stretch of bytes that both tokenizers cut out. By the chain rule each model gives it one probability,
the product over its own tokens in there, whatever their number. Those two numbers mean the same thing in any two
vocabularies; they are compared as the outcomes "these bytes" and "anything else" (approximate likelihood matching,
Minixhofer et al., arXiv 2503.20083, section 3).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from uld_ds.recipe import ObjectiveSettings

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"]

# A probability nearer to 1 than this counts as this near: the slope of the divergence grows like 1 / (1 - q) there,
# and what it multiplies, the gradient of a float32 log-softmax, is known to 6e-8.
_NEAREST_TO_ONE = 1e-4


class LikelihoodTerm(NamedTuple):
    """Divergences of S segments' likelihoods, and their slopes."""

    value: Tensor
    """[S] float64 divergences in nats (total variation: probability)."""
    slope: Tensor
    """[S] float64 d value / d the student's log-probability of the segment."""


class LikelihoodPart(NamedTuple):
    """The likelihood part of one micro-batch's loss."""

    value: Tensor
    """Scalar float64 sum over the segments, without the recipe's weight."""
    loss: Tensor
    """Scalar float64 sum over the segments, with the recipe's weight."""
    slopes: Tensor
    """[S] float64 d loss / d the student's log-probability of each segment."""


def likelihood_part(
    teacher: Tensor, student: Tensor, shares: Tensor, settings: ObjectiveSettings, *, weight: float | Tensor
) -> LikelihoodPart:
    """Sum, over segments, the divergence between both models' probabilities of a segment's bytes.

    Args:
        teacher: [S] natural log-probability of each segment's bytes.
        student: [S] the student's log-probability of the same bytes.
        shares: [S] shares of the segments in the sum.
        settings: the recipe's objective.
        weight: the recipe's, of all segments or [S] of each.
    """
    term = likelihood_term(
        teacher,
        student,
        divergence=settings.likelihood_divergence,
        temperature=settings.likelihood_temperature,
    )
    shares = shares.double()
    value, slopes = term.value @ shares, term.slope * shares
    if isinstance(weight, Tensor):
        weight = weight.double()
        return LikelihoodPart(value, term.value @ (shares * weight), slopes * weight)
    return LikelihoodPart(value, weight * value, weight * slopes)


def likelihood_term(
    teacher: Tensor, student: Tensor, *, divergence: Divergence = "forward_kl", temperature: float = 1.0
) -> LikelihoodTerm:
    """Compute the divergence between two Bernoulli distributions per segment, and its slope.

    With ``p = exp(teacher / temperature)`` and ``q = exp(student / temperature)``, ``forward_kl`` is
    ``p log(p / q) + (1 - p) log((1 - p) / (1 - q))``. A high temperature moves all probabilities towards 1 and weighs
    unlikely segments like likely ones.

    Args:
        teacher: [S] natural log-probability of each segment's bytes.
        student: [S] the student's log-probability of the same bytes.
        divergence: ``forward_kl`` and ``reverse_kl`` are unbounded; ``jensen_shannon`` is at most log 2,
            ``total_variation`` at most 1.
        temperature: > 0.

    Raises:
        ValueError: shapes are not both [S], or the temperature is not positive.
    """
    if teacher.shape != student.shape or teacher.dim() != 1:
        raise ValueError(f"one value per segment from both sides, got {list(teacher.shape)} and {list(student.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    log_p = log_probability(teacher) / temperature
    log_s = log_probability(student).requires_grad_()
    with torch.enable_grad():
        log_q = log_s / temperature
        value = _DIVERGENCES[divergence](log_p, log_q)
        (slope,) = torch.autograd.grad(value.sum(), log_s)
    return LikelihoodTerm(value.detach(), slope)


def log_probability(given: Tensor) -> Tensor:
    """Copy log-probabilities as float64, none nearer to certainty than the divergences can tell."""
    return given.detach().double().clamp(max=-_NEAREST_TO_ONE)


def log_rest(log_p: Tensor) -> Tensor:
    """Compute ``log(1 - p)`` from ``log p``."""
    return torch.log(-torch.expm1(log_p))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    rest_p = log_rest(log_p)
    return log_p.exp() * (log_p - log_q) + rest_p.exp() * (rest_p - log_rest(log_q))


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return _kl(log_q, log_p)


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    middle = torch.logaddexp(log_p, log_q) - torch.log(log_p.new_tensor(2.0))
    return (_kl(log_p, middle) + _kl(log_q, middle)) / 2


def _total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()).abs()


_DIVERGENCES = {
    "forward_kl": _kl,
    "reverse_kl": _reverse_kl,
    "jensen_shannon": _jensen_shannon,
    "total_variation": _total_variation,
}
