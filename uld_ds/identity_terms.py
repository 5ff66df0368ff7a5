"""Terms of the objective that look at *which* tokens the teacher thinks likeliest, on chunks of the student's logits.

All of them read the teacher's ``TopTokens`` of the rows that stand for a segment, at temperature 1 on both sides. A
new one is one new file with a class that has what ``IdentityTerm`` asks for, and a line in ``identity_terms``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from uld_ds.classical import ClassicalTerm
from uld_ds.recipe import ObjectiveSettings
from uld_ds.top_tokens import TopTokens


class IdentityTerm(Protocol):
    """A divergence between the student's distribution and the teacher's likeliest tokens, row by row."""

    @property
    def name(self) -> str:
        """Of its weight among the recipe's objective, and of its value among a run's metrics."""
        ...

    @property
    def weight(self) -> float:
        """In the loss; never 0."""
        ...

    def add(self, logits: Tensor, log_normaliser: Tensor, top: TopTokens, weight: Tensor, grad: Tensor) -> Tensor:
        """Values of a chunk of rows; adds their gradient.

        Args:
            logits: [C, V] the student's, of any floating type. To be left as they are.
            log_normaliser: [C] ``logsumexp(logits)``.
            top: [C, k] the teacher's. A row of nothing but -inf is padding: value 0, gradient 0.
            weight: [C] of each row's value in the loss.
            grad: [C, V] float32, the loss's gradient on ``logits``: adds ``weight * d value / d logits``.

        Returns:
            [C] nats, without ``weight``; NaN where logits are NaN.
        """
        ...


def identity_terms(settings: ObjectiveSettings) -> tuple[IdentityTerm, ...]:
    """Those that have a weight."""
    return tuple(_TERMS[name](settings) for name in weighed_terms(settings))


def weighed_terms(settings: ObjectiveSettings) -> list[str]:
    """Names of the terms that have a weight."""
    return [name for name in _TERMS if getattr(settings, name)]


def needed_ids(settings: ObjectiveSettings) -> int:
    """How many of the teacher's likeliest tokens the objective looks at; 0 if at none."""
    return settings.top_ids if weighed_terms(settings) else 0


def _classical(settings: ObjectiveSettings) -> IdentityTerm:
    return ClassicalTerm(settings.classical, settings.classical_divergence, settings.jensen_shannon_beta)


# By the key of its weight.
_TERMS: dict[str, Callable[[ObjectiveSettings], IdentityTerm]] = {"classical": _classical}
