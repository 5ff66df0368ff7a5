"""The completion term: where the student's token begins what the teacher would write as one token, how it goes on.

Event-set completion distillation (arXiv 2609.34738, section 3). At a segment's beginning ``x`` the student writes its
token ``a``. Of the teacher's top-k tokens there, those that the student's vocabulary lacks are joined into groups where
one's bytes begin another's. ``M_g`` is a group's probability, ``y_g`` the shortest of its byte strings. If ``a`` is a
strict beginning of ``y_g``, and ``r_g`` what is left of it, the student's tokens ``C(r_g)`` that begin with ``r_g`` are
supervised as a set at the next position:

    sum over g of  -M_g log sum over u in C(r_g) of p(u | x, a)

Probabilities are the models' own: nothing is renormalized, and a set without tokens contributes nothing. As no group's
``y_g`` begins another's, the sets of a row are disjoint. With ``q_u`` the student's probability of ``u`` and ``w_u``
its share in its set, the gradient is ``dvalue/dz_u = q_u sum over g of M_g  -  w_u M_g(u)``.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.alignment.completions import CompletionIndex
from uld_ds.losses.term import Compared, Row
from uld_ds.spectrum.checks import accumulation_dtype
from uld_ds.spectrum.top_tokens import TopTokens


@dataclass(frozen=True)
class CompletionSets:
    """Completion sets of R rows with at most G sets each, as ranges of the student's tokens sorted by their bytes."""

    rows: Tensor
    """[R] the rows, ascending."""
    masses: Tensor
    """[R, G] float64 the teacher's probability of each group; 0 for padding."""
    low: Tensor
    """[R, G] place of the first token of each set."""
    high: Tensor
    """[R, G] the place behind the last."""
    num_tokens: int
    """Number E of tokens of all sets."""


@dataclass(frozen=True)
class CompletionTargets:
    """The R of A rows that have completion sets. Their numbers are on the host: no chunk waits for the device."""

    sets: CompletionSets
    """The sets of all of them."""
    numbers: list[int]
    """[R] the rows, ascending."""
    ends: list[int]
    """[R + 1] number of tokens in the sets before each row, and in all."""

    @classmethod
    def of(cls, masses: Tensor, low: Tensor, high: Tensor) -> CompletionTargets:
        """Select from [A, G] sets the rows that have any."""
        rows = (masses.sum(1) > 0).nonzero().squeeze(1)
        masses, low, high = masses[rows], low[rows], high[rows]
        numbers, ends = torch.stack([rows, (high - low).sum(1).cumsum(0)]).tolist()
        ends = [0, *ends]
        return cls(CompletionSets(rows, masses, low, high, ends[-1]), numbers, ends)

    def __getitem__(self, chunk: slice) -> CompletionSets:
        first, behind = (bisect_left(self.numbers, row) for row in (chunk.start, chunk.stop))
        own, of_all = slice(first, behind), self.sets
        num_tokens = self.ends[behind] - self.ends[first]
        return CompletionSets(
            of_all.rows[own] - chunk.start, of_all.masses[own], of_all.low[own], of_all.high[own], num_tokens
        )


@dataclass(frozen=True)
class CompletionTerm:
    """The ``IdentityTerm`` that supervises what completes the teacher's tokens, at the student's next position."""

    weight: float
    """Weight of the term in the loss."""
    tables: CompletionTables
    """Completion sets of the two vocabularies."""
    row: ClassVar[Row] = "next"

    @property
    def name(self) -> str:
        """The term's key in the objective and name among the metrics."""
        return "completion"

    @torch.no_grad()
    def prepare(self, compared: Compared) -> CompletionTargets:
        """Find the groups of S segments and their completion sets, laid out on the A rows that they are about."""
        roots = self.tables.grouped(compared.top)
        pairs, known = self.tables.pairs(roots.ids, compared.student_ids)
        masses = roots.log_probs.exp().masked_fill(~known, 0.0)
        # Most of the k are no group of this row: as many columns as the row with most groups needs.
        most = max(1, int(known.sum(1).amax())) if len(known) else 1
        masses, kept = masses.topk(min(most, masses.shape[1]), dim=1)
        places = pairs.gather(1, kept)
        low, high = (table[places].masked_fill(masses == 0, 0) for table in (self.tables.low, self.tables.high))
        return CompletionTargets.of(*(compared.laid_out(values, self.row) for values in (masses, low, high)))

    @torch.no_grad()
    def add(
        self, logits: Tensor, log_normalizer: Tensor, prepared: CompletionSets, weight: Tensor, grad: Tensor
    ) -> Tensor:
        """Compute the cross-entropy of the sets of C rows, [C] float64 nats, and add its gradient.

        See ``IdentityTerm.add``.
        """
        value = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
        sets, rows = prepared, prepared.rows  # R of the C rows, with G sets each
        if len(rows) == 0:
            return value
        log_q = logits[rows].to(accumulation_dtype(logits.dtype)) - log_normalizer[rows, None]  # [R, V]
        tokens, set_of_token = self.tables.members(sets, log_q.shape[1])  # [E] both
        row_of_token = set_of_token // sets.masses.shape[1]
        of_tokens = log_q[row_of_token, tokens]  # [E]
        log_sums = _log_sums(of_tokens, set_of_token, sets.masses.numel())  # [R * G]
        # A set whose tokens the model has no logits for, or logits of -inf, is one without tokens.
        impossible = log_sums == float("-inf")
        log_sums, masses = log_sums.masked_fill(impossible, 0.0), sets.masses.flatten().masked_fill(impossible, 0.0)
        value[rows] = -(masses * log_sums.double()).view_as(sets.masses).sum(1)
        factor = weight[rows].to(log_q.dtype)
        shares = (of_tokens - log_sums[set_of_token]).exp() * masses.to(log_q.dtype)[set_of_token]
        change = log_q.exp_().mul_((masses.view_as(sets.masses).sum(1).to(log_q.dtype) * factor)[:, None])
        # Sets are disjoint, so that nothing accumulates: on an accelerator that would sort all E entries.
        change[row_of_token, tokens] -= shares * factor[row_of_token]
        grad.index_add_(0, rows, change.to(grad.dtype))
        return value


def _log_sums(of_tokens: Tensor, set_of_token: Tensor, num_sets: int) -> Tensor:
    """Compute the logarithm of each set's probability, [num_sets], from its tokens' log-probabilities, [E]."""
    largest = of_tokens.new_full((num_sets,), float("-inf")).scatter_reduce_(0, set_of_token, of_tokens, "amax")
    largest = largest.masked_fill(largest == float("-inf"), 0.0)
    sums = of_tokens.new_zeros(num_sets).index_add_(0, set_of_token, (of_tokens - largest[set_of_token]).exp())
    return sums.log() + largest


@dataclass(frozen=True)
class CompletionTables:
    """A ``CompletionIndex`` as tensors on one device, in the form that a batch is looked up in."""

    order: Tensor
    """[n] the student's tokens sorted by their bytes."""
    canonical: Tensor
    """[V_s + 1] the token that stands for each one's bytes, V_s for none; the last entry is for other ids."""
    begin: Tensor
    """[V_t + 1] place of each teacher's token among the teacher's byte strings, -1 for those that have a twin."""
    end: Tensor
    """[V_t + 1] the first place behind those of all tokens that begin with its bytes."""
    keys: Tensor
    """[P + 1] pairs of a teacher's and a student's token as one number, ascending; the last one is larger than any."""
    low: Tensor
    """[P + 1] first place in ``order`` of the tokens that complete the pair."""
    high: Tensor
    """[P + 1] the place behind the last of them."""

    @classmethod
    def of(cls, index: CompletionIndex, device: torch.device | str = "cpu") -> CompletionTables:
        """Move an index to ``device``."""
        num_student = len(index.canonical)
        canonical = torch.from_numpy(index.canonical)
        canonical = F.pad(canonical.masked_fill(canonical < 0, num_student), (0, 1), value=num_student)
        keys = torch.from_numpy(index.teacher) * (num_student + 1) + torch.from_numpy(index.student)
        last = torch.tensor([torch.iinfo(torch.int64).max])  # (F.pad takes numbers for floating ones)
        tensors = {
            "order": torch.from_numpy(index.order),
            "canonical": canonical,
            "begin": F.pad(torch.from_numpy(index.begin), (0, 1), value=-1),
            "end": F.pad(torch.from_numpy(index.end), (0, 1), value=-1),
            "keys": torch.cat([keys, last]),
            "low": F.pad(torch.from_numpy(index.low), (0, 1)),
            "high": F.pad(torch.from_numpy(index.high), (0, 1)),
        }
        return cls(**{name: tensor.to(device) for name, tensor in tensors.items()})

    def grouped(self, top: TopTokens) -> TopTokens:
        """Join the top-k tokens that the student has not where one's bytes begin another's.

        Returns:
            [S, k] tokens: for each group its shortest one, with the logarithm of the group's probability; -inf for all
            others.
        """
        ids = top.ids.clamp(max=len(self.begin) - 1)
        p = top.bounded_log_probs().exp().nan_to_num(nan=0.0)
        lacking = (self.begin[ids] >= 0) & (p > 0)
        nowhere = len(self.begin)  # larger than any place
        begin, order = self.begin[ids].masked_fill(~lacking, nowhere).sort(dim=1, stable=True)
        # Ranges of places contain one another or are apart: one that begins behind all ranges so far is a group's.
        end = self.end[ids].masked_fill(~lacking, 0).gather(1, order)
        reach = F.pad(end.cummax(1).values[:, :-1], (1, 0))
        lacking = lacking.gather(1, order)
        is_root = lacking & (begin >= reach)
        group = (is_root.cumsum(1) - 1).clamp(min=0)
        masses = torch.zeros_like(p).scatter_add_(1, group, p.gather(1, order) * lacking)
        of_roots = masses.gather(1, group).masked_fill(~is_root, 0.0)
        return TopTokens(ids.gather(1, order), of_roots.log())

    def pairs(self, teacher_ids: Tensor, student_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the pairs of each segment's tokens of the teacher, [S, n], and its token of the student, [S].

        Returns:
            [S, n] number of the pair, and whether there is one, [S, n] bool.
        """
        num_student = len(self.canonical) - 1
        spelled = self.canonical[student_ids.clamp(max=num_student)]
        wanted = teacher_ids * (num_student + 1) + spelled[:, None]
        found = torch.searchsorted(self.keys, wanted.contiguous()).clamp(max=len(self.keys) - 1)
        return found, (self.keys[found] == wanted) & (spelled < num_student)[:, None]

    def members(self, sets: CompletionSets, vocab: int) -> tuple[Tensor, Tensor]:
        """List the E tokens of all sets below ``vocab``, [E], and the set of each among the R * G, [E]."""
        low, sizes = sets.low.flatten(), (sets.high - sets.low).flatten()
        numbers = torch.arange(len(sizes), device=sizes.device)
        numbers = numbers.repeat_interleave(sizes, output_size=sets.num_tokens)
        first = sizes.cumsum(0) - sizes
        within = torch.arange(len(numbers), device=sizes.device) - first[numbers]
        tokens = self.order[low[numbers] + within]
        if vocab >= len(self.canonical) - 1:
            return tokens, numbers
        there = tokens < vocab  # this tokenizer has more tokens than its model has logits
        return tokens[there], numbers[there]
