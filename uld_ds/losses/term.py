"""The interface of the objective's terms that look at token identities, and what they compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from uld_ds.spectrum.top_tokens import TopTokens


class IdentityTerm(Protocol):
    """A term of the objective: a divergence of the student from the teacher's top-k tokens, row by row."""

    @property
    def name(self) -> str:
        """The term's key in the recipe's objective, and the name of its value among a run's metrics."""
        ...

    @property
    def weight(self) -> float:
        """The term's weight in the loss of given answers; 0 where it is there for the student's own answers alone."""
        ...

    def prepare(self, compared: Compared) -> Any:
        """Prepare what ``add`` compares S segments with; a slice of the result serves those of the segments."""
        ...

    def add(self, logits: Tensor, log_normalizer: Tensor, prepared: Any, weight: Tensor, grad: Tensor) -> Tensor:
        """Compute the term's values of a chunk of C rows, and add their gradient to ``grad``.

        Args:
            logits: [C, V] logits of the student, of any floating dtype. To be left as they are.
            log_normalizer: [C] ``logsumexp(logits)``.
            prepared: C rows of what ``prepare`` made of the teacher's top-k tokens. A row of nothing but -inf among
                those is padding: value 0, gradient 0.
            weight: [C] weight of each row's value in the loss.
            grad: [C, V] float32, the loss's gradient with respect to ``logits``, to which
                ``weight * d value / d logits`` is added.

        Returns:
            [C] nats, without ``weight``; NaN where logits are NaN.
        """
        ...


@dataclass(frozen=True)
class Compared:
    """Teacher outputs and right tokens of S segments, where their distributions are compared."""

    top: TopTokens
    """[S, k] top-k tokens of the teacher."""
    log_probs: Tensor
    """[S] natural log-probability that the teacher gives to each segment's bytes."""
    first_log_probs: Tensor
    """[S] natural log-probability of the teacher's own first token of the segment, which ``top`` may hold."""
    student_ids: Tensor
    """[S] the student's first token of the segment: the one that its distribution there should predict."""
