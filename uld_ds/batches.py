"""Micro-batches: the tensors of a window, which data makes, and models, teachers and losses read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Merge = Literal["first", "chain"]


@dataclass(frozen=True)
class SegmentRows:
    """Places of S segments among the A answer rows of one side of a micro-batch."""

    compared: Tensor
    """[S] the row whose distribution stands for each segment."""
    others: Tensor
    """[A - S] the rows that stand for no segment."""
    earlier: Tensor
    """[P] rows of tokens that come before the compared one in its segment; P is 0 with ``merge: first``.

    The compared distribution is scaled by their probabilities.
    """
    earlier_segment: Tensor
    """[P] the segment that each of the ``earlier`` rows belongs to."""
    members: Tensor
    """[M] rows of all tokens of all segments, segment after segment."""
    member_segment: Tensor
    """[M] the segment that each of the ``members`` rows belongs to."""

    def __len__(self) -> int:
        return len(self.compared)

    def num_tokens(self) -> Tensor:
        """Count the tokens of each segment, [S]."""
        return torch.bincount(self.member_segment, minlength=len(self))

    def log_scale(self, log_probs: Tensor) -> Tensor | None:
        """Sum the log-probabilities that scale each segment's distribution, [S] nats; None where nothing is scaled.

        Args:
            log_probs: [P] natural log-probabilities of the tokens in the ``earlier`` rows.
        """
        if len(self.earlier) == 0:
            return None
        return log_probs.new_zeros(len(self)).index_add_(0, self.earlier_segment, log_probs)

    def log_probs(self, log_probs: Tensor) -> Tensor:
        """Sum the natural log-probability of each segment's bytes by the chain rule, [S].

        Args:
            log_probs: [M] natural log-probabilities of the tokens in the ``members`` rows.
        """
        return log_probs.new_zeros(len(self)).index_add_(0, self.member_segment, log_probs)

    def to(self, device: torch.device) -> SegmentRows:
        """Move the rows to ``device``."""
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in self.__dict__.items()})


@dataclass(frozen=True)
class SideBatch:
    """Tokens of one side of a micro-batch: B examples of L tokens, A answer tokens in all.

    Logits at position i-1 predict token i: rows are positions *before* the token they are about.
    """

    input_ids: Tensor
    """[B, L] int64 token ids, padded on the right."""
    attention_mask: Tensor
    """[B, L] int64 mask of ``input_ids``, 0 for padding."""
    answer_rows: Tensor
    """[A] index into the flattened [B * L] positions of the one that predicts each answer token."""
    answer_ids: Tensor
    """[A] the right token of each answer row."""
    answer_in_text: Tensor
    """[A] bool, False where the token ends a turn instead of spelling an answer."""
    answer_example: Tensor
    """[A] which of the B examples each answer row belongs to."""
    encoder_ids: Tensor | None = None
    """[B, E] int64, padded on the right: the prompts of a model with an encoder, whose decoder has ``input_ids``."""
    encoder_mask: Tensor | None = None
    """[B, E] int64 mask of ``encoder_ids``, 0 for padding."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each of the B examples without padding, known on the host; None where there is an encoder."""

    def num_tokens(self) -> Tensor:
        """Count the tokens that the model reads, without padding, as a scalar tensor."""
        decoder = self.attention_mask.sum()
        return decoder if self.encoder_mask is None else decoder + self.encoder_mask.sum()

    def num_positions(self) -> int:
        """Count the positions that the model computes, padding included."""
        return self.input_ids.numel() + (0 if self.encoder_ids is None else self.encoder_ids.numel())

    def to(self, device: torch.device) -> SideBatch:
        """Move the tensors to ``device``."""
        there: dict[str, Any] = {name: value for name, value in self.__dict__.items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in there.items()})


@dataclass(frozen=True)
class SegmentPairs:
    """The S segments of a micro-batch that the student shares with one of its teachers."""

    student: SegmentRows
    """Places of the S segments among the student's answer rows of the examples that the teacher judges."""
    teacher: SegmentRows
    """Places of the S segments among the teacher's answer tokens, which stand example after example."""
    example: Tensor
    """[S] which of the B examples each segment belongs to."""
    judged: tuple[int, ...] | None = None
    """Which of the B examples the teacher judges; None where it judges all."""
    answers: Tensor | None = None
    """[J] the student's answer rows of these examples; None where the teacher judges all."""

    def places(self, num_examples: int) -> Sequence[int]:
        """List the places, among the B examples, of those that the teacher judges."""
        return range(num_examples) if self.judged is None else self.judged

    def to(self, device: torch.device) -> SegmentPairs:
        """Move the tensors to ``device``."""
        return replace(
            self,
            student=self.student.to(device),
            teacher=self.teacher.to(device),
            example=self.example.to(device, non_blocking=True),
            answers=None if self.answers is None else self.answers.to(device, non_blocking=True),
        )

    def of(self, values: Tensor) -> Tensor:
        """Select from values [A, ...] of all of the student's answer rows those of the judged examples, [J, ...]."""
        return values if self.answers is None else values[self.answers]


@dataclass(frozen=True)
class JudgedBatch:
    """A micro-batch as one teacher judges it: B examples, S segments in those of them that are this teacher's."""

    student: SideBatch
    """Tokens of the student's side, with the A answer rows of the judged examples alone."""
    student_segments: SegmentRows
    """Places of the S segments among the student's answer rows."""
    teacher_segments: SegmentRows
    """Places of the S segments among the teacher's answer tokens."""
    segment_example: Tensor
    """[S] which of the B examples each segment belongs to."""
    own: Tensor | None = None
    """[B] bool, True where the student sampled the answer itself; None in runs without rollouts."""

    @property
    def own_answers(self) -> Tensor | None:
        """[A] bool: which of the student's answer rows are of its own answers; None in runs without rollouts."""
        return None if self.own is None else self.own[self.student.answer_example]

    @property
    def own_segments(self) -> Tensor | None:
        """[S] bool: which segments are of the student's own answers; None in runs without rollouts."""
        return None if self.own is None else self.own[self.segment_example]


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass of the student: B examples, with their segments for each teacher."""

    examples: list[int]
    """[B] index of each example in the data."""
    student: SideBatch
    """Tokens of the student's side."""
    pairs: tuple[SegmentPairs, ...]
    """The segments that each teacher judges, in the order of the recipe's teachers."""
    example_weight: Tensor
    """[B] weight of each example: 1.0, or 0.0 for a stand-in that fills up a window."""
    answer_bytes: Tensor
    """[B] int64 number of UTF-8 bytes that each example's answer rows spell."""
    own: Tensor | None = None
    """[B] bool, True where the student sampled the answer itself; None in runs without rollouts."""

    def judged_by(self, number: int) -> JudgedBatch:
        """Return the micro-batch as the teacher of a number judges it."""
        pairs, student = self.pairs[number], self.student
        if pairs.answers is not None:
            names = ("answer_rows", "answer_ids", "answer_in_text", "answer_example")
            own: dict[str, Any] = {name: pairs.of(getattr(student, name)) for name in names}
            student = replace(student, **own)
        return JudgedBatch(student, pairs.student, pairs.teacher, pairs.example, self.own)

    def weights_of(self, *, own: bool) -> Tensor:
        """Return the weight of each example, [B], or 0 where it is not of the student's own, or given, answers."""
        if self.own is None:
            return torch.zeros_like(self.example_weight) if own else self.example_weight
        return self.example_weight * (self.own if own else ~self.own)

    def to(self, device: torch.device) -> MicroBatch:
        """Move the tensors to ``device``."""
        return MicroBatch(
            examples=self.examples,
            student=self.student.to(device),
            pairs=tuple(pairs.to(device) for pairs in self.pairs),
            example_weight=self.example_weight.to(device, non_blocking=True),
            answer_bytes=self.answer_bytes.to(device, non_blocking=True),
            own=None if self.own is None else self.own.to(device, non_blocking=True),
        )
