"""Which examples an optimizer step sees, in which micro-batch, on which rank - and their tensors.

The order depends on the seed alone, never on the number of ranks: step ``s`` sees the same examples on one
worker as on sixteen. Only how a step's examples are dealt out depends on the ranks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from uld_ds.spectrum import Spectrum

IGNORED = -1


@dataclass(frozen=True)
class SideBatch:
    """One side of a micro-batch. B examples, L tokens, A answer tokens, S segments.

    Logits at position i-1 predict token i: rows are positions *before* the token they are about.
    """

    input_ids: torch.Tensor
    """[B, L] int64, padded on the right."""
    attention_mask: torch.Tensor
    """[B, L] int64."""
    answer_rows: torch.Tensor
    """[A] index into the flattened [B * L] positions of the one that predicts each answer token."""
    answer_ids: torch.Tensor
    """[A] the token predicted there."""
    answer_in_text: torch.Tensor
    """[A] bool; False where the token ends the turn instead of spelling the answer."""
    answer_example: torch.Tensor
    """[A] which of the B examples."""
    segment_answers: torch.Tensor
    """[S] index into the A answer rows of the one that predicts each segment's first token."""
    segment_example: torch.Tensor
    """[S] which of the B examples."""

    @property
    def segment_rows(self) -> torch.Tensor:
        """[S] index into the flattened [B * L] positions."""
        return self.answer_rows[self.segment_answers]

    def to(self, device: torch.device) -> SideBatch:
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in self.__dict__.items()})


@dataclass(frozen=True)
class MicroBatch:
    """One forward of the student: B examples."""

    student: SideBatch
    example_weight: torch.Tensor
    """[B] 1.0, or 0.0 for a stand-in that fills up a window."""
    answer_bytes: torch.Tensor
    """[B] int64."""

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(
            self.student.to(device),
            self.example_weight.to(device, non_blocking=True),
            self.answer_bytes.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Window:
    """All micro-batches of one optimizer step on one rank, and the same examples regrouped for the teacher.

    The teacher's forward has no activations to keep, so its sub-batches are larger than the student's
    micro-batches, and grouped by length across them.
    """

    micro_batches: list[MicroBatch]
    teacher_batches: list[SideBatch]
    segment_order: torch.Tensor
    """[S] where each segment, in the order of the micro-batches, is among those of the teacher's sub-batches."""

    def to(self, device: torch.device) -> Window:
        return Window(
            [micro_batch.to(device) for micro_batch in self.micro_batches],
            [batch.to(device) for batch in self.teacher_batches],
            self.segment_order.to(device, non_blocking=True),
        )

    def split(self, spectrum: Spectrum) -> list[Spectrum]:
        """One Spectrum per micro-batch, from the rows of all teacher sub-batches in a row."""
        ordered = spectrum[self.segment_order]
        sizes = [len(micro_batch.student.segment_answers) for micro_batch in self.micro_batches]
        starts = np.cumsum([0, *sizes])
        return [ordered[int(start) : int(stop)] for start, stop in itertools.pairwise(starts)]


def num_steps(num_examples: int, batch_size: int, *, epochs: float | None, steps: int | None) -> int:
    """Optimizer steps of a run, from its length in epochs or steps."""
    if steps is not None:
        return steps
    assert epochs is not None
    return math.ceil(num_run_examples(num_examples, epochs) / batch_size)


def num_run_examples(num_examples: int, epochs: float) -> int:
    """Examples of a run of so many epochs: at least one."""
    return max(1, round(num_examples * epochs))


def step_examples(step: int, num_examples: int, batch_size: int, seed: int, *, total: int | None = None) -> np.ndarray:
    """Indices of the examples of optimizer step ``step`` (from 0): [batch_size], IGNORED beyond ``total``.

    Epochs follow each other without a gap, each in an order of its own.

    Args:
        total: examples of the whole run (num_run_examples), when its last step may be incomplete.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // num_examples
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([seed, int(epoch)]).permutation(num_examples)
        here = epochs == epoch
        indices[here] = order[positions[here] % num_examples]
    if total is not None:
        indices[positions >= total] = IGNORED
    return indices


def deal(indices: np.ndarray, lengths: np.ndarray, *, rank: int, ranks: int, micro_batch_size: int) -> list[np.ndarray]:
    """This rank's micro-batches of a step's examples.

    Examples of similar length share a micro-batch, and ranks get similar ones at the same time, so that little
    is padded and no rank waits long.

    Args:
        indices: [batch_size] examples of the step; IGNORED for none.
        lengths: [num_examples] of every example in the data.

    Returns:
        accumulation arrays of [micro_batch_size] indices.
    """
    key = np.where(indices == IGNORED, -1, lengths[np.maximum(indices, 0)])
    ordered = indices[np.argsort(-key, kind="stable")]
    by_turn = ordered.reshape(-1, ranks * micro_batch_size)
    return [turn[rank::ranks] for turn in by_turn]


class Batcher:
    """Makes windows and evaluation batches out of prepared rows.

    Args:
        rows: from prepare.py.
        student_padding: token id that fills up the student's sequences.
        teacher_padding: the same for the teacher.
        max_teacher_tokens: most tokens, padding included, of a teacher sub-batch (a longer example is alone in one).
    """

    def __init__(self, rows: Dataset, *, student_padding: int, teacher_padding: int, max_teacher_tokens: int) -> None:
        self._rows = rows.with_format("numpy")
        self._padding = {"student": student_padding, "teacher": teacher_padding}
        self._max_teacher_tokens = max_teacher_tokens
        self._teacher_lengths = np.asarray(self._rows["teacher_length"][:])
        self.lengths = np.asarray(self._rows["student_length"][:]) + self._teacher_lengths
        # Stands in for a missing example; the shortest costs least.
        self._stand_in = int(np.argmin(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def window(self, micro_batches: Sequence[np.ndarray], num_teacher_batches: int) -> Window:
        """The window of some micro-batches, each [B] indices of examples (IGNORED: a stand-in of weight 0).

        Args:
            num_teacher_batches: the most that any rank has: all run the same number of teacher forwards, so
                this rank's are filled up with idle ones.
        """
        examples = np.concatenate([self._resolved(indices) for indices in micro_batches])
        groups = self._teacher_groups(examples)
        assert len(groups) <= num_teacher_batches, "fewer teacher forwards than this rank alone needs"
        rows = self._read(examples)
        starts = np.cumsum([0, *map(len, micro_batches)])
        idle = [self._idle_teacher_batch()] * (num_teacher_batches - len(groups))
        return Window(
            micro_batches=[
                self._micro_batch(indices, rows[start:])
                for indices, start in zip(micro_batches, starts[:-1], strict=True)
            ],
            teacher_batches=[*(self._side([rows[i] for i in group], "teacher") for group in groups), *idle],
            segment_order=torch.from_numpy(_segment_order(rows, np.concatenate(groups))),
        )

    def num_teacher_batches(self, micro_batches: Sequence[np.ndarray]) -> int:
        """How many sub-batches the teacher's side of a window has."""
        return len(self._teacher_groups(np.concatenate([self._resolved(indices) for indices in micro_batches])))

    def evaluation_batch(self, indices: np.ndarray) -> tuple[MicroBatch, SideBatch]:
        """Student's micro-batch and teacher's side of some examples, in the same order."""
        rows = self._read(self._resolved(indices))
        return self._micro_batch(indices, rows), self._side(rows, "teacher")

    def _idle_teacher_batch(self) -> SideBatch:
        batch = self._side(self._read(np.array([self._stand_in])), "teacher")
        nothing = torch.empty(0, dtype=torch.long)
        return replace(batch, segment_answers=nothing, segment_example=nothing)

    def _resolved(self, indices: np.ndarray) -> np.ndarray:
        return np.where(indices == IGNORED, self._stand_in, indices)

    def _read(self, examples: np.ndarray) -> list[dict[str, Any]]:
        # All at once: a row alone costs as much as dozens together.
        columns = self._rows[examples.tolist()]
        return [{name: column[i] for name, column in columns.items()} for i in range(len(examples))]

    def _micro_batch(self, indices: np.ndarray, rows: list[dict[str, Any]]) -> MicroBatch:
        """Of the examples ``indices``, whose rows come first in ``rows``."""
        rows = rows[: len(indices)]
        return MicroBatch(
            student=self._side(rows, "student"),
            example_weight=torch.from_numpy((indices != IGNORED).astype(np.float32)),
            answer_bytes=torch.tensor([int(row["answer_bytes"]) for row in rows]),
        )

    def _side(self, rows: list[dict[str, Any]], side: str) -> SideBatch:
        return _side(rows, side, self._padding[side])

    def _teacher_groups(self, examples: np.ndarray) -> list[np.ndarray]:
        """Positions in ``examples``, longest first, in groups whose padded size keeps to the budget."""
        by_length = np.argsort(-self._teacher_lengths[examples], kind="stable")
        groups: list[list[int]] = []
        longest = 0
        for position in by_length:
            length = int(self._teacher_lengths[examples[position]])
            if not groups or (len(groups[-1]) + 1) * longest > self._max_teacher_tokens:
                groups.append([])
                longest = length
            groups[-1].append(int(position))
        return [np.asarray(group) for group in groups]


def _segment_order(rows: list[dict[str, Any]], taken: np.ndarray) -> np.ndarray:
    """Where each row's segments are when the rows come in the order ``taken``."""
    counts = np.asarray([len(row["teacher_segments"]) for row in rows])
    begins = np.empty_like(counts)
    begins[taken] = np.cumsum(counts[taken]) - counts[taken]
    return np.concatenate([np.arange(begin, begin + n) for begin, n in zip(begins, counts, strict=True)])


def _side(rows: list[dict[str, Any]], side: str, padding: int) -> SideBatch:
    ids_of = [row[f"{side}_ids"] for row in rows]
    length = max(len(ids) for ids in ids_of)
    input_ids = np.full((len(rows), length), padding, dtype=np.int64)
    attention_mask = np.zeros((len(rows), length), dtype=np.int64)
    answers: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    num_answers = 0
    for i, (row, ids) in enumerate(zip(rows, ids_of, strict=True)):
        input_ids[i, : len(ids)] = ids
        attention_mask[i, : len(ids)] = 1
        first, stop = int(row[f"{side}_first"]), int(row[f"{side}_stop"])
        tokens = np.arange(first, len(ids))
        answers.append(np.stack([tokens, tokens < stop, np.full_like(tokens, i)]))
        starts = row[f"{side}_segments"].astype(np.int64)
        segments.append(np.stack([num_answers + starts - first, np.full_like(starts, i)]))
        num_answers += len(tokens)
    tokens, in_text, example = np.concatenate(answers, axis=1)
    segment_answers, segment_example = np.concatenate(segments, axis=1)
    return SideBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        answer_rows=torch.from_numpy(example * length + tokens - 1),
        answer_ids=torch.from_numpy(input_ids[example, tokens]),
        answer_in_text=torch.from_numpy(in_text.astype(bool)),
        answer_example=torch.from_numpy(example.copy()),
        segment_answers=torch.from_numpy(segment_answers.copy()),
        segment_example=torch.from_numpy(segment_example.copy()),
    )
