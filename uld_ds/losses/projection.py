"""The projection term: the teacher's top-k tokens become tokens of the student, and both sides are compared there.

Each of the teacher's top-k tokens gives its probability to the student's token with the longest bytes that it
begins with, or is; what the student would write first to spell it. (NVIDIA's X-Token carries probabilities by a sparse
matrix between vocabularies; this is the one that bytes alone determine.) Three things are stated rather than hidden:

- Mass without such a token, and all beyond the top k, is one outcome, "anything else". Nothing is renormalized.
- The teacher's probability of the text that really follows, up to the next common boundary, is known. It goes to the
  token with which the student begins that text, also where the teacher's own token there is shorter.
- Any other of the teacher's tokens that is only the beginning of what it would go on to write stays where it is.

With k the whole of one vocabulary on both sides it is the classical divergence.

Three choices are the recipe's: which divergence; whether all segments are compared or only those of one token on both
sides, where nothing needs projecting (the "strict" rows of arXiv 2610.08448); and whether all of those tokens are told
apart or only the student's likeliest of them, the others being part of "anything else".

And what an outcome is: a token of the student (what is said above), or a *set* of them (``uld_ds.alignment.outcomes``):
all that the bytes of the two vocabularies do not tell apart at this place. With sets, a teacher's token that is only
the beginning of what the student would write as one token takes no probability from that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from uld_ds.losses.divergences import Divergence, lumped
from uld_ds.losses.term import Compared, Row
from uld_ds.losses.token_mapping import NOWHERE, continued
from uld_ds.spectrum.checks import accumulation_dtype
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
    kind: Divergence = "forward_kl"
    """Which divergence the term computes."""
    beta: float = 0.5
    """Mixing weight of generalized Jensen-Shannon."""
    only_one_to_one: bool = False
    """Whether only segments of one token on both sides are compared; the others then have the value 0."""
    num_picked: int | None = None
    """How many of the projected tokens are told apart, the student's likeliest. Default: all."""
    outcomes: Tensor | None = None
    """[V_s + 1] the outcome of each of the student's tokens, where outcomes are sets; ``mapping`` is then to them. Its
    last entry, larger than any, is for ids that the student's tokenizer does not know."""
    num_outcomes: int = 0
    """How many outcomes there are, where they are sets: on the host, so that no chunk waits for the device."""
    row: ClassVar[Row] = "first"

    @property
    def name(self) -> str:
        """The term's key in the objective and name among the metrics."""
        return "projection"

    @torch.no_grad()
    def prepare(self, compared: Compared) -> Projected:
        """Project the teacher's top-k tokens of S segments to the student's vocabulary."""
        if self.only_one_to_one:
            compared = compared.without(~compared.one_to_one)
        if self.outcomes is not None:
            ids = compared.student_ids.clamp(max=len(self.outcomes) - 1)
            compared = replace(compared, student_ids=self.outcomes[ids])
        return Projected(continued(compared, self.mapping), compared.top.log_probs[:, 0] > float("-inf"))

    @torch.no_grad()
    def add(self, logits: Tensor, log_normalizer: Tensor, prepared: Projected, weight: Tensor, grad: Tensor) -> Tensor:
        """Compute the divergence of C rows, [C] float64 nats, and add its gradient; see ``IdentityTerm.add``."""
        if self.outcomes is None:
            return self._compare(logits, log_normalizer, prepared, weight, grad)
        sets = SetLogits.of(logits, self.outcomes, self.num_outcomes)
        of_sets = torch.zeros_like(sets.log_sums)
        value = self._compare(sets.log_sums, log_normalizer, sets.those_there(prepared), weight, of_sets)
        grad += sets.to_tokens(of_sets).to(grad.dtype)
        return value

    def _compare(
        self, logits: Tensor, log_normalizer: Tensor, prepared: Projected, weight: Tensor, grad: Tensor
    ) -> Tensor:
        tokens = prepared.tokens if self.num_picked is None else _likeliest(logits, prepared.tokens, self.num_picked)
        return lumped(
            logits,
            log_normalizer,
            tokens,
            weight,
            grad,
            kind=self.kind,
            beta=self.beta,
            alive=prepared.alive,
        )


@dataclass(frozen=True)
class SetLogits:
    """The logits of sets of tokens: the logarithm of the sum of each set's exponentials."""

    logits: Tensor
    """[C, V] logits of the tokens."""
    set_of_token: Tensor
    """[V] the set of each token."""
    log_sums: Tensor
    """[C, K] logits of the sets; the last one's is of tokens that nobody looks at."""

    @classmethod
    def of(cls, logits: Tensor, outcomes: Tensor, number: int) -> SetLogits:
        """Add up logits [C, V] by the outcome of each token, [V_s + 1]; ``number`` is how many outcomes there are."""
        vocab, known = logits.shape[1], len(outcomes) - 1
        set_of_token = outcomes[torch.arange(vocab, device=logits.device).clamp(max=known)]
        z = logits.to(accumulation_dtype(logits.dtype))
        index = set_of_token.expand_as(z)
        shape = (len(z), number)
        largest = z.new_full(shape, float("-inf")).scatter_reduce_(1, index, z, "amax")
        largest = largest.masked_fill(largest == float("-inf"), 0.0)
        sums = z.new_zeros(shape).scatter_add_(1, index, (z - largest.gather(1, index)).exp_())
        return cls(z, set_of_token, sums.log() + largest)

    def those_there(self, prepared: Projected) -> Projected:
        """Make nothing of sets of C rows of which the model has no token: they are part of "anything else"."""
        tokens = prepared.tokens
        of_sets = self.log_sums.gather(1, tokens.ids.clamp(max=self.log_sums.shape[1] - 1))
        ids = tokens.ids.masked_fill(of_sets == float("-inf"), NOWHERE)
        return Projected(TopTokens(ids, tokens.log_probs), prepared.alive)

    def to_tokens(self, of_sets: Tensor) -> Tensor:
        """Spread the gradient of the sets' logits [C, K] over those of the tokens, [C, V]: by their shares."""
        index = self.set_of_token.expand_as(self.logits)
        log_sums = self.log_sums.gather(1, index)
        shares = (self.logits - log_sums.masked_fill(log_sums == float("-inf"), 0.0)).exp_()
        return shares.mul_(of_sets.gather(1, index))


def _likeliest(logits: Tensor, tokens: TopTokens, number: int) -> TopTokens:
    """Keep the ``number`` of C rows' tokens, [C, k], that the student's logits [C, V] are largest for.

    Of equal logits it is the ones that the teacher has more mass for.
    """
    by_teacher = tokens.log_probs.argsort(dim=1, descending=True, stable=True)
    tokens = TopTokens(tokens.ids.gather(1, by_teacher), tokens.log_probs.gather(1, by_teacher))
    vocab = logits.shape[1]
    of_tokens = logits.gather(1, tokens.ids.clamp(max=vocab - 1)).masked_fill(tokens.ids >= vocab, float("-inf"))
    places = of_tokens.argsort(dim=1, descending=True, stable=True)[:, :number]
    return TopTokens(tokens.ids.gather(1, places), tokens.log_probs.gather(1, places))
