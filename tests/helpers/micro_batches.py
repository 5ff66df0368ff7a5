"""Micro-batches and rows put together by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset

from uld_ds.batches import MicroBatch, SegmentPairs, SegmentRows, SideBatch
from uld_ds.data.pairing import FEATURES
from uld_ds.data.teacher_batching import TeacherBatcher


def micro_batch(examples: list[tuple[float, int, int]]) -> MicroBatch:
    """Of examples with a weight, a number of answer tokens and a number of segments."""
    nothing = torch.empty(0, dtype=torch.long)
    answers = torch.tensor([i for i, (_, tokens, _) in enumerate(examples) for _ in range(tokens)], dtype=torch.long)
    segments = torch.tensor([i for i, (_, _, count) in enumerate(examples) for _ in range(count)], dtype=torch.long)
    side = SideBatch(nothing, nothing, nothing, nothing, nothing, answers)
    none = SegmentRows(nothing, nothing, nothing, nothing, nothing, nothing)
    weights = torch.tensor([weight for weight, _, _ in examples])
    return MicroBatch([], side, (SegmentPairs(none, none, segments),), weights, nothing)


def row(number: int, student: list[Any], teacher: list[Any]) -> dict[str, Any]:
    """An example whose n-th token is 100 * number + n (1000s for the teacher).

    Args:
        student: length, places of the answer tokens, how many spell the answer, segments among them.
        teacher: the same.
    """
    row: dict[str, Any] = {"answer_bytes": 10 * number, "prompt": "", "digest": "", "notes": []}
    for name, (length, answers, num_in_text, segments), base in (("student", student, 0), ("teacher", teacher, 1000)):
        row |= {
            f"{name}_ids": np.arange(length) + 100 * number + base,
            f"{name}_encoder_ids": [],
            f"{name}_length": length,
            f"{name}_answers": answers,
            f"{name}_in_text": [i < num_in_text for i in range(len(answers))],
            f"{name}_segments": [start for start, _ in segments],
            f"{name}_segment_stops": [stop for _, stop in segments],
            f"{name}_last_turn": answers[0],
        }
    return row


ROWS = [
    row(1, [6, [2, 3, 4, 5], 3, [(0, 1), (1, 3), (3, 4)]], [5, [2, 3, 4], 2, [(0, 1), (1, 2), (2, 3)]]),
    row(2, [4, [1, 2, 3], 2, [(0, 2), (2, 3)]], [9, [3, 4, 5, 6, 7, 8], 5, [(0, 5), (5, 6)]]),
    row(3, [8, [4, 5, 6, 7], 4, [(0, 2), (2, 3), (3, 4)]], [4, [1, 2, 3], 3, [(0, 1), (1, 2), (2, 3)]]),
    row(4, [3, [1, 2], 1, [(0, 1), (1, 2)]], [3, [1, 2], 1, [(0, 1), (1, 2)]]),
]


def rows() -> Dataset:
    return Dataset.from_list(ROWS, features=FEATURES)


def teacher_batcher(max_tokens: int = 999) -> TeacherBatcher:
    return TeacherBatcher(rows(), padding=8, max_tokens=max_tokens)
