"""What a term of the objective that looks at token identities has to offer, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from uld_ds.spectrum.top_tokens import TopTokens


class IdentityTerm(Protocol):
    """A divergence between the student's distribution and the teacher's top-k tokens, row by row."""

    @property
    def name(self) -> str:
        """Of its weight among the recipe's objective, and of its value among a run's metrics."""
        ...

    @property
    def weight(self) -> float:
        """In the loss; never 0."""
        ...

    def prepare(self, compared: Compared) -> Any:
        """What ``add`` needs to know of S segments; a slice of it is the same of some of them."""
        ...

    def add(self, logits: Tensor, log_normalizer: Tensor, prepared: Any, weight: Tensor, grad: Tensor) -> Tensor:
        """Values of a chunk of rows; adds their gradient.

        Args:
            logits: [C, V] the student's, of any floating type. To be left as they are.
            log_normalizer: [C] ``logsumexp(logits)``.
            prepared: C rows of what ``prepare`` made of the teacher's top-k tokens. A row of nothing but -inf among
                those is padding: value 0, gradient 0.
            weight: [C] of each row's value in the loss.
            grad: [C, V] float32, the loss's gradient on ``logits``: adds ``weight * d value / d logits``.

        Returns:
            [C] nats, without ``weight``; NaN where logits are NaN.
        """
        ...


@dataclass(frozen=True)
class Compared:
    """What is known of S segments where their distributions are compared."""

    top: TopTokens
    """S rows: the teacher's top-k tokens."""
    log_probs: Tensor
    """[S] natural log-probability that the teacher gives to each segment's bytes."""
    first_log_probs: Tensor
    """[S] natural log-probability of the teacher's own first token of the segment, which ``top`` may hold."""
    student_ids: Tensor
    """[S] the student's first token of the segment: the one that its distribution there should predict."""
