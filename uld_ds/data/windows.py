"""The tensors of a window: all micro-batches of one optimizer step on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from uld_ds.data.order import IGNORED

Merge = Literal["first", "chain"]
_NOT_OF_STUDENT = ("teacher_ids", "teacher_encoder_ids", "prompt")


@dataclass(frozen=True)
class SegmentRows:
    """Where S segments are among the A answer rows of one side of a micro-batch."""

    compared: Tensor
    """[S] the row whose distribution stands for the segment."""
    others: Tensor
    """[A - S] the rows that stand for none."""
    earlier: Tensor
    """[P] rows of tokens that come before the compared one in its segment: its distribution is scaled by their
    probabilities. None with ``merge: first``."""
    earlier_segment: Tensor
    """[P] which of the S segments each of them belongs to."""
    members: Tensor
    """[M] rows of all tokens of all segments, segment after segment,"""
    member_segment: Tensor
    """[M] and which of the S segments each of them belongs to."""

    def __len__(self) -> int:
        return len(self.compared)

    def log_scale(self, log_probs: Tensor) -> Tensor | None:
        """[S] nats: what each segment's distribution is scaled by; None where nothing is.

        Args:
            log_probs: [P] natural log-probabilities of the tokens in the ``earlier`` rows.
        """
        if len(self.earlier) == 0:
            return None
        return log_probs.new_zeros(len(self)).index_add_(0, self.earlier_segment, log_probs)

    def log_probs(self, log_probs: Tensor) -> Tensor:
        """[S] natural log-probability of each segment's bytes, by the chain rule.

        Args:
            log_probs: [M] of the tokens in the ``members`` rows.
        """
        return log_probs.new_zeros(len(self)).index_add_(0, self.member_segment, log_probs)

    def to(self, device: torch.device) -> SegmentRows:
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in self.__dict__.items()})


@dataclass(frozen=True)
class SideBatch:
    """Tokens of one side. B examples, L tokens, A answer tokens.

    Logits at position i-1 predict token i: rows are positions *before* the token they are about.
    """

    input_ids: Tensor
    """[B, L] int64, padded on the right."""
    attention_mask: Tensor
    """[B, L] int64."""
    answer_rows: Tensor
    """[A] index into the flattened [B * L] positions of the one that predicts each answer token."""
    answer_ids: Tensor
    """[A] the token predicted there."""
    answer_in_text: Tensor
    """[A] bool; False where the token ends a turn instead of spelling an answer."""
    answer_example: Tensor
    """[A] which of the B examples."""
    encoder_ids: Tensor | None = None
    """[B, E] int64, padded on the right: the prompts of a model with an encoder, whose decoder has ``input_ids``."""
    encoder_mask: Tensor | None = None
    """[B, E] int64."""

    def num_tokens(self) -> Tensor:
        """A scalar: all that the model reads, without padding."""
        decoder = self.attention_mask.sum()
        return decoder if self.encoder_mask is None else decoder + self.encoder_mask.sum()

    def num_positions(self) -> int:
        """All that the model computes, padding included."""
        return self.input_ids.numel() + (0 if self.encoder_ids is None else self.encoder_ids.numel())

    def to(self, device: torch.device) -> SideBatch:
        there = {name: value for name, value in self.__dict__.items() if value is not None}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in there.items()})


@dataclass(frozen=True)
class MicroBatch:
    """One forward of the student: B examples with S segments."""

    examples: list[int]
    """[B] which examples of the data these are."""
    student: SideBatch
    student_segments: SegmentRows
    """Among the student's answer rows."""
    teacher_segments: SegmentRows
    """The same segments among the answer tokens of the teacher, those of example after example."""
    segment_example: Tensor
    """[S] which of the B examples."""
    example_weight: Tensor
    """[B] 1.0, or 0.0 for a stand-in that fills up a window."""
    answer_bytes: Tensor
    """[B] int64."""

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(
            examples=self.examples,
            student=self.student.to(device),
            student_segments=self.student_segments.to(device),
            teacher_segments=self.teacher_segments.to(device),
            segment_example=self.segment_example.to(device, non_blocking=True),
            example_weight=self.example_weight.to(device, non_blocking=True),
            answer_bytes=self.answer_bytes.to(device, non_blocking=True),
        )


class Batcher:
    """Makes micro-batches out of prepared rows.

    Args:
        rows: from prepare.py.
        padding: token id that fills up the student's sequences.
        merge: which of a segment's tokens is compared.
    """

    def __init__(self, rows: Dataset, *, padding: int, merge: Merge = "first") -> None:
        self._rows = rows.remove_columns([name for name in _NOT_OF_STUDENT if name in rows.column_names])
        self._rows = self._rows.with_format("numpy")
        self._padding = padding
        self._merge: Merge = merge
        self.lengths = np.asarray(self._rows["student_length"][:]) + np.asarray(self._rows["teacher_length"][:])
        # Stands in for a missing example; the shortest costs least.
        self._stand_in = int(np.argmin(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def window(self, micro_batches: Sequence[np.ndarray]) -> list[MicroBatch]:
        """The micro-batches of a step, each from [B] indices of examples (IGNORED: a stand-in of weight 0)."""
        rows = read_rows(self._rows, self._resolved(np.concatenate(micro_batches)))
        starts = np.cumsum([0, *map(len, micro_batches)])
        return [
            self._micro_batch(indices, rows[start : start + len(indices)])
            for indices, start in zip(micro_batches, starts[:-1], strict=True)
        ]

    def _resolved(self, indices: np.ndarray) -> np.ndarray:
        return np.where(indices == IGNORED, self._stand_in, indices)

    def _micro_batch(self, indices: np.ndarray, rows: list[dict[str, Any]]) -> MicroBatch:
        counts = [len(row["student_segments"]) for row in rows]
        return MicroBatch(
            examples=self._resolved(indices).tolist(),
            student=side_batch(rows, "student", self._padding),
            student_segments=segment_rows(rows, "student", self._merge),
            teacher_segments=segment_rows(rows, "teacher", self._merge),
            segment_example=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
            example_weight=torch.from_numpy((indices != IGNORED).astype(np.float32)),
            answer_bytes=torch.tensor([int(row["answer_bytes"]) for row in rows]),
        )


def read_rows(rows: Dataset, examples: np.ndarray) -> list[dict[str, Any]]:
    """Rows as mappings; of the shuffled data all at once, because one alone costs as much as dozens together."""
    columns = rows[examples.tolist()]
    return [{name: column[i] for name, column in columns.items()} for i in range(len(examples))]


def side_batch(rows: Sequence[dict[str, Any]], side: str, padding: int) -> SideBatch:
    """One side of some rows, padded to the longest.

    Args:
        rows: with ``{side}_ids``, ``{side}_encoder_ids``, ``{side}_answers`` and ``{side}_in_text``.
        side: ``student`` or ``teacher``.
        padding: token id.
    """
    input_ids, attention_mask = _padded([row[f"{side}_ids"] for row in rows], padding)
    length = input_ids.shape[1]
    encoder_ids, encoder_mask = _padded([row[f"{side}_encoder_ids"] for row in rows], padding)
    has_encoder = encoder_ids.shape[1] > 0
    tokens = np.concatenate([row[f"{side}_answers"] for row in rows]).astype(np.int64)
    example = np.repeat(np.arange(len(rows)), [len(row[f"{side}_answers"]) for row in rows])
    return SideBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        answer_rows=torch.from_numpy(example * length + tokens - 1),
        answer_ids=torch.from_numpy(input_ids[example, tokens]),
        answer_in_text=torch.from_numpy(np.concatenate([row[f"{side}_in_text"] for row in rows]).astype(bool)),
        answer_example=torch.from_numpy(example),
        encoder_ids=torch.from_numpy(encoder_ids) if has_encoder else None,
        encoder_mask=torch.from_numpy(encoder_mask) if has_encoder else None,
    )


def _padded(ids_of: Sequence[np.ndarray], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [B, L] and their mask."""
    ids = np.full((len(ids_of), max(map(len, ids_of))), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, own in enumerate(ids_of):
        ids[i, : len(own)] = own
        mask[i, : len(own)] = 1
    return ids, mask


def segment_rows(rows: Sequence[dict[str, Any]], side: str, merge: Merge) -> SegmentRows:
    """Index tensors of some rows' segments among their answer tokens, one row after the other."""
    num_answers = np.array([len(row[f"{side}_answers"]) for row in rows])
    num_segments = [len(row[f"{side}_segments"]) for row in rows]
    base = np.repeat(np.cumsum(num_answers) - num_answers, num_segments)
    first = np.concatenate([row[f"{side}_segments"] for row in rows]).astype(np.int64) + base
    last = np.concatenate([row[f"{side}_segment_stops"] for row in rows]).astype(np.int64) + base - 1
    compared, before = (first, np.zeros_like(first)) if merge == "first" else (last, last - first)
    earlier, earlier_segment = _runs(first, before)
    members, member_segment = _runs(first, last - first + 1)
    others = np.ones(int(num_answers.sum()), bool)
    others[compared] = False
    return SegmentRows(
        compared=torch.from_numpy(compared),
        others=torch.from_numpy(np.flatnonzero(others)),
        earlier=torch.from_numpy(earlier),
        earlier_segment=torch.from_numpy(earlier_segment),
        members=torch.from_numpy(members),
        member_segment=torch.from_numpy(member_segment),
    )


def _runs(first: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of runs of given lengths, one run after the other, and the number of each row's run."""
    owner = np.repeat(np.arange(len(first)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return first[owner] + within, owner


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to fill up sequences with. Padded positions are masked: any id that exists will do."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
