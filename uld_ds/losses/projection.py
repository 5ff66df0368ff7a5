"""The projection term: the teacher's top-k tokens become tokens of the student, compared by KL(teacher, student).

Each of the teacher's top-k tokens gives its probability to the student's token with the longest bytes that it
begins with, or is; what the student would write first to spell it. (NVIDIA's X-Token carries probabilities by a sparse
matrix between vocabularies; this is the one that bytes alone determine.) Three things are stated rather than hidden:

- Mass without such a token, and all beyond the top k, is one outcome, "anything else". Nothing is renormalized.
- The teacher's probability of the text that really follows, up to the next common boundary, is known. It goes to the
  token with which the student begins that text, also where the teacher's own token there is shorter.
- Any other of the teacher's tokens that is only the beginning of what it would go on to write stays where it is.

With k the whole of one vocabulary on both sides it is the classical forward KL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uld_ds.losses.divergences import lumped
from uld_ds.losses.term import Compared
from uld_ds.losses.token_mapping import continued
from uld_ds.spectrum.top_tokens import TopTokens


@dataclass(frozen=True)
class Projected:
    """The teacher's top-k tokens of S segments, projected to the student's vocabulary."""

    tokens: TopTokens
    """[S, k + 1] tokens of the student, with the teacher's masses."""
    alive: Tensor
    """[S] bool: False for padding."""

    def __getitem__(self, rows: slice) -> Projected:
        return Projected(self.tokens[rows], self.alive[rows])


@dataclass(frozen=True)
class ProjectionTerm:
    """The ``IdentityTerm`` that compares the student with the teacher's top-k tokens, projected to its vocabulary."""

    weight: float
    """Weight of the term in the loss."""
    mapping: Tensor
    """[V_t + 1] from ``mapping_of``: the longest beginning of each of the teacher's tokens."""

    @property
    def name(self) -> str:
        """The term's key in the objective and name among the metrics."""
        return "projection"

    @torch.no_grad()
    def prepare(self, compared: Compared) -> Projected:
        """Project the teacher's top-k tokens of S segments to the student's vocabulary."""
        return Projected(continued(compared, self.mapping), compared.top.log_probs[:, 0] > float("-inf"))

    @torch.no_grad()
    def add(self, logits: Tensor, log_normalizer: Tensor, prepared: Projected, weight: Tensor, grad: Tensor) -> Tensor:
        """Compute the forward KL of C rows, [C] float64 nats, and add its gradient; see ``IdentityTerm.add``."""
        return lumped(logits, log_normalizer, prepared.tokens, weight, grad, alive=prepared.alive)
