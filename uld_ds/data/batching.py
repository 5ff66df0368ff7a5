"""A batcher that makes the tensors of a window: all micro-batches of one optimizer step on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from uld_ds.batches import Merge, MicroBatch, SegmentPairs, SegmentRows, SideBatch
from uld_ds.data.sampling import IGNORED
from uld_ds.data.teacher_views import as_judged, judges, view_of

_NOT_OF_STUDENT = ("teacher_ids", "teacher_encoder_ids", "prompt")


class Batcher:
    """A maker of micro-batches out of prepared rows.

    Args:
        rows: Rows of prepare.py.
        padding: Token id that fills up the student's sequences.
        merge: Which of a segment's tokens is compared.
        own_from: Number of the first example that is the student's own answer, in a run with rollouts.
    """

    def __init__(self, rows: Dataset, *, padding: int, merge: Merge = "first", own_from: int | None = None) -> None:
        unread = [name for name in rows.column_names if name.rpartition(".")[2] in _NOT_OF_STUDENT]
        self._rows = rows.remove_columns(unread).with_format("numpy")
        self._teachers = judges(rows)
        self._padding = padding
        self._merge: Merge = merge
        self._own_from = own_from
        sides = [whole_column(rows, "student_length")]
        sides += [whole_column(view_of(rows, name), "teacher_length") for name in self._teachers]
        self.lengths = np.sum(sides, axis=0)
        """[number of rows] tokens of each example, all sides together."""
        self.longest_side = np.max(sides, axis=0)
        """[number of rows] tokens of each example, on the side where it has most."""
        # Stands in for a missing example; the shortest costs least.
        self._stand_in = int(np.argmin(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def window(self, micro_batches: Sequence[np.ndarray]) -> list[MicroBatch]:
        """Make the micro-batches of a step, each from [B] indices of examples (IGNORED: a stand-in of weight 0)."""
        rows = read_rows(self._rows, self._resolved(np.concatenate(micro_batches)))
        starts = np.cumsum([0, *map(len, micro_batches)])
        return [
            self._micro_batch(indices, rows[start : start + len(indices)])
            for indices, start in zip(micro_batches, starts[:-1], strict=True)
        ]

    def examples(self, micro_batches: Sequence[np.ndarray]) -> list[int]:
        """List the examples that the micro-batches of a step will have, stand-ins included."""
        found: list[int] = self._resolved(np.concatenate(micro_batches)).tolist()
        return found

    def _resolved(self, indices: np.ndarray) -> np.ndarray:
        return np.where(indices == IGNORED, self._stand_in, indices)

    def _micro_batch(self, indices: np.ndarray, rows: list[dict[str, Any]]) -> MicroBatch:
        return MicroBatch(
            examples=self._resolved(indices).tolist(),
            student=side_batch(rows, "student", self._padding),
            pairs=tuple(self._pairs([as_judged(row, name) for row in rows]) for name in self._teachers),
            example_weight=torch.from_numpy((indices != IGNORED).astype(np.float32)),
            answer_bytes=torch.tensor([int(row["answer_bytes"]) for row in rows]),
            own=None if self._own_from is None else torch.from_numpy(self._resolved(indices) >= self._own_from),
        )

    def _pairs(self, rows: list[dict[str, Any]]) -> SegmentPairs:
        """Make the segments of some rows, as one teacher judges them."""
        counts = [len(row["student_segments"]) for row in rows]
        judged = [place for place, row in enumerate(rows) if len(row["teacher_answers"])]
        own = [rows[place] for place in judged] or rows  # where it judges none, nobody looks at the rows
        pairs = SegmentPairs(
            student=segment_rows(own, "student", self._merge),
            teacher=segment_rows(own, "teacher", self._merge),
            example=torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        )
        if len(judged) == len(rows):
            return pairs
        of_example = np.repeat(np.arange(len(rows)), [len(row["student_answers"]) for row in rows])  # [A]
        answers = torch.from_numpy(np.flatnonzero(np.isin(of_example, judged)))
        return replace(pairs, judged=tuple(judged), answers=answers)


def whole_column(rows: Dataset, name: str) -> np.ndarray:
    """Read a column of whole numbers, [number of rows] int64.

    Without a look at each of them: runs with rollouts read it anew in every round, as little as a step apart.
    """
    table: Any = rows.select_columns([name]).with_format("arrow")[:]
    return table.column(name).to_numpy().astype(np.int64)


def read_rows(rows: Dataset, examples: np.ndarray) -> list[dict[str, Any]]:
    """Read some rows as mappings, all at once: of shuffled data, one alone costs as much as dozens together."""
    columns = rows[examples.tolist()]
    return [{name: column[i] for name, column in columns.items()} for i in range(len(examples))]


def side_batch(rows: Sequence[dict[str, Any]], side: str, padding: int) -> SideBatch:
    """Make the batch of one side of some rows, padded to the longest.

    Args:
        rows: Rows with ``{side}_ids``, ``{side}_encoder_ids``, ``{side}_answers`` and ``{side}_in_text``.
        side: ``student`` or ``teacher``.
        padding: Token id that fills up sequences.
    """
    input_ids, attention_mask = _padded([row[f"{side}_ids"] for row in rows], padding)  # [B, L] each
    length = input_ids.shape[1]
    encoder_ids, encoder_mask = _padded([row[f"{side}_encoder_ids"] for row in rows], padding)  # [B, E] each
    has_encoder = encoder_ids.shape[1] > 0
    tokens = np.concatenate([row[f"{side}_answers"] for row in rows]).astype(np.int64)  # [A]
    example = np.repeat(np.arange(len(rows)), [len(row[f"{side}_answers"]) for row in rows])  # [A]
    return SideBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        answer_rows=torch.from_numpy(example * length + tokens - 1),
        answer_ids=torch.from_numpy(input_ids[example, tokens]),
        answer_in_text=torch.from_numpy(np.concatenate([row[f"{side}_in_text"] for row in rows]).astype(bool)),
        answer_example=torch.from_numpy(example),
        encoder_ids=torch.from_numpy(encoder_ids) if has_encoder else None,
        encoder_mask=torch.from_numpy(encoder_mask) if has_encoder else None,
        lengths=None if has_encoder else tuple(len(row[f"{side}_ids"]) for row in rows),
    )


def _padded(ids_of: Sequence[np.ndarray], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad token ids on the right to [B, L], with their mask [B, L]."""
    ids = np.full((len(ids_of), max(map(len, ids_of))), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, own in enumerate(ids_of):
        ids[i, : len(own)] = own
        mask[i, : len(own)] = 1
    return ids, mask


def segment_rows(rows: Sequence[dict[str, Any]], side: str, merge: Merge) -> SegmentRows:
    """Make the index tensors of some rows' S segments among their A answer tokens, one row after the other.

    Args:
        rows: B rows with ``{side}_answers``, ``{side}_segments`` and ``{side}_segment_stops``.
        side: ``student`` or ``teacher``.
        merge: Which of a segment's tokens is compared.
    """
    num_answers = np.array([len(row[f"{side}_answers"]) for row in rows])  # [B]
    num_segments = [len(row[f"{side}_segments"]) for row in rows]
    base = np.repeat(np.cumsum(num_answers) - num_answers, num_segments)  # [S]
    first = np.concatenate([row[f"{side}_segments"] for row in rows]).astype(np.int64) + base  # [S]
    last = np.concatenate([row[f"{side}_segment_stops"] for row in rows]).astype(np.int64) + base - 1  # [S]
    compared, before = (first, np.zeros_like(first)) if merge == "first" else (last, last - first)
    earlier, earlier_segment = _runs(first, before)  # [P] each
    members, member_segment = _runs(first, last - first + 1)  # [M] each
    others = np.ones(int(num_answers.sum()), bool)  # [A]
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
    """List the rows of runs of given lengths, one run after the other, and the number of each row's run."""
    owner = np.repeat(np.arange(len(first)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return first[owner] + within, owner


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Choose the token id to fill up sequences with; padded positions are masked, so any that exists will do."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
