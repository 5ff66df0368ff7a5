"""Likelihood matching over runs of segments: the probabilities of the bytes of several segments in a row.

A longer run asks for less: the two models may share its probability out among the segments in there as they like.
(The chunks of several sizes of Minixhofer et al., arXiv 2503.20083; here one size at a time.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.batches import SegmentRows
from uld_ds.losses.likelihood import likelihood_term
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum.top_tokens import TopTokens


class LikelihoodPart(NamedTuple):
    """The likelihood part of one micro-batch's loss."""

    value: Tensor
    """Scalar float64 sum over the runs, without the recipe's weight."""
    loss: Tensor
    """Scalar float64 sum over the runs, with the recipe's weight."""
    slopes: Tensor
    """[S] float64 d loss / d the student's log-probability of each segment."""


def word_may_be_over(top: TopTokens, ends_word: Tensor, threshold: float) -> Tensor:
    """Mark the segments before which the teacher gives the end of a word more than ``threshold``, [S] bool.

    A tokenizer that would have cut the text elsewhere gives what it cannot write from there on no probability: bytes
    that end inside of a word are not worth comparing. (Minixhofer et al. join such chunks with the next: their
    ``merge_by_space_prob``, with a threshold of 0.1.)

    Args:
        top: [S] the teacher's top-k tokens where each segment begins; the sum over them is a lower bound of the sum
            over all.
        ends_word: [V_t] from VocabularyRelations. Ids beyond them do not end a word.
        threshold: a probability.

    Returns:
        [S] bool.
    """
    known = F.pad(ends_word, (0, 1), value=False)
    ends = known[top.ids.clamp(max=len(ends_word))]
    return (top.log_probs.double().exp() * ends).sum(1) > threshold


def runs_of(segments: SegmentRows, answer_rows: Tensor, length: int, may_begin: Tensor | None = None) -> Tensor:
    """Group segments into runs of ``length``, and return the number of each segment's run, [S].

    Runs lie within one answer of one example: its segments follow each other without a gap, and where the next answer
    begins there is at least a prompt between. The last run of an answer may be shorter.

    Args:
        segments: S segments.
        answer_rows: [A] the position that predicts each answer token, as SideBatch has them.
        length: segments of a run, at least 1; with ``may_begin`` the stretches between such segments count as one.
        may_begin: [S] bool, before which of them a run may end; None: before all.

    Returns:
        [S] numbers from 0, in order.
    """
    number = torch.arange(len(segments), device=answer_rows.device)
    if len(segments) == 0 or (length == 1 and may_begin is None):
        return number
    position = answer_rows[segments.members]  # [M]
    # Members stand segment after segment: where the owner changes, one ends and another begins.
    begins = F.pad(segments.member_segment.diff() != 0, (1, 0), value=True)
    gap = F.pad(position.diff() != 1, (1, 0), value=True)
    opens = gap[begins]  # [S]: whether a segment is the first of an answer
    allowed = torch.ones_like(opens) if may_begin is None else opens | may_begin
    stretch = allowed.cumsum(0)
    first = torch.where(opens, stretch, 0).cummax(0).values
    return (allowed & ((stretch - first) % length == 0)).cumsum(0) - 1


def likelihood_part(
    teacher: Tensor,
    student: Tensor,
    runs: Tensor,
    weights: Tensor,
    settings: ObjectiveSettings,
    *,
    weight: float | Tensor = 1.0,
) -> LikelihoodPart:
    """Sum, over runs, the divergence between both models' probabilities of a run's bytes.

    A run counts as much as its segments together: the weights of a step add up to 1 whatever their number.

    Args:
        teacher: [S] natural log-probability of each segment's bytes.
        student: [S] the student's log-probability of the same bytes.
        runs: [S] from ``runs_of``.
        weights: [S] shares of the segments in the sum.
        settings: the recipe's objective.
        weight: the recipe's, of all segments or [S] of each; the segments of a run have the same.
    """
    nothing = torch.zeros(len(runs), dtype=torch.float64, device=runs.device)
    of_teacher, of_student, of_run = (
        nothing.index_add(0, runs, values.double()) for values in (teacher, student, weights)
    )
    term = likelihood_term(
        of_teacher,
        of_student,
        divergence=settings.likelihood_divergence,
        temperature=settings.likelihood_temperature,
    )
    # Numbers that no run has: of weight 0.
    value, slopes = term.value @ of_run, (term.slope * of_run)[runs]
    if isinstance(weight, Tensor):
        weighed = nothing.index_add(0, runs, weights.double() * weight.double())
        return LikelihoodPart(value, term.value @ weighed, slopes * weight.double())
    return LikelihoodPart(value, weight * value, weight * slopes)
