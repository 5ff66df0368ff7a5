"""The interface of the objective's terms that look at token identities, and what they compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.batches import JudgedBatch
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teacher_outputs import TeacherSegments

Row = Literal["first", "next"]
"""Which of the student's rows a term looks at: the ``first`` of a segment, or the ``next`` one, after the segment's
first token."""


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

    @property
    def row(self) -> Row:
        """Which row of each segment the term looks at."""
        ...

    def prepare(self, compared: Compared) -> Any:
        """Prepare what ``add`` compares the student with; a slice of the result serves those of the rows.

        Rows are the S segments, or with ``row`` "next" all A rows, each with what belongs to the segment that it is
        the next one of, and padding where it is of none (``Compared.laid_out``).
        """
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
    next_rows: Tensor
    """[S] the row after that token among the A rows in the loss's order, the S compared ones first; -1: there is none.

    No two segments have the same."""
    num_rows: int
    """Number A of the student's rows."""
    one_to_one: Tensor
    """[S] bool: segments of one token on both sides."""

    @classmethod
    def of(cls, micro_batch: JudgedBatch, teacher: TeacherSegments, order: Tensor, top_ids: int) -> Compared:
        """Collect what identity terms compare the segments of a micro-batch with.

        Args:
            micro_batch: the student's side, with S segments among the A rows.
            teacher: the teacher's outputs for them, with top-k tokens.
            order: [A] the student's rows in the loss's order.
            top_ids: how many of the top-k tokens are looked at.
        """
        assert teacher.top is not None
        segments, batch = micro_batch.student_segments, micro_batch.student
        return cls(
            top=teacher.top.first(top_ids),
            log_probs=teacher.log_probs,
            first_log_probs=teacher.first_log_probs,
            student_ids=batch.answer_ids[segments.compared],
            next_rows=_next_rows(segments.compared, batch.answer_rows, order),
            num_rows=len(order),
            one_to_one=(segments.num_tokens() == 1) & (micro_batch.teacher_segments.num_tokens() == 1),
        )

    def laid_out(self, values: Tensor, row: Row) -> Tensor:
        """Lay out values of segments, [S, ...], on the rows that a term looks at.

        Returns:
            [S, ...] the values themselves, or with ``row`` "next" [A, ...]: each on the row that is the next one of its
            segment, 0 on rows that are of none.
        """
        if row == "first":
            return values
        # Those without a next row share one behind the last, as nothing here waits for the device.
        rows = torch.where(self.next_rows < 0, self.num_rows, self.next_rows)
        on_rows = values.new_zeros((self.num_rows + 1, *values.shape[1:]))
        return on_rows.index_copy_(0, rows, values)[: self.num_rows]

    def without(self, left_out: Tensor) -> Compared:
        """Make padding, which no term compares, of the segments that are marked in ``left_out`` [S]."""
        log_probs = self.top.log_probs.masked_fill(left_out[:, None], float("-inf"))
        return replace(self, top=TopTokens(self.top.ids, log_probs))


def _next_rows(compared: Tensor, answer_rows: Tensor, order: Tensor) -> Tensor:
    """Find the row after each compared one, [S], as a place in ``order`` [A]; -1 where the answer has no further token.

    Args:
        compared: [S] rows.
        answer_rows: [A] the position of each row; those of an answer follow each other without a gap, and between
            answers lies at least one position.
        order: [A] permutation of the rows.
    """
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    follows = F.pad(answer_rows.diff() == 1, (0, 1), value=False)[: len(answer_rows)]  # [A]
    following = place.roll(-1)
    return torch.where(follows[compared], following[compared], -1)
