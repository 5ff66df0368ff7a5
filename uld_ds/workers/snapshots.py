"""Snapshots of the models for a run's report: some distributions, a calibration, a few answers.

Written while the models are there, by the first rank, into ``report`` in the run's folder; a few kilobytes each.
Taking a snapshot is one forward over a handful of held-out examples, the same on every rank. It draws no random
number, so that a run with a report and one without learn the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from uld_ds.batches import MicroBatch, SideBatch
from uld_ds.data.batching import Batcher
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.models.row_model import Consume, Head
from uld_ds.reporting.alignment_examples import alignments
from uld_ds.runs.folder import RunFolder, Who
from uld_ds.utils.files import write_whole
from uld_ds.utils.redaction import Redactor

# Calls a model with a batch, positions and what is to be done with their hidden states.
Forward = Callable[[SideBatch, Tensor, Consume[list[Tensor]]], list[Tensor]]

NUM_EXAMPLES = 4
_SEGMENTS_PER_EXAMPLE = 2
_MOST_RANKS = 8192
_NUM_LIKELIEST = 3
_CONTEXT_CHARACTERS = 90


def ranks_shown(vocab_size: int) -> list[int]:
    """Choose the ranks at which a spectrum is kept, counted from 1: all of the first, then ever fewer."""
    grid = np.unique(np.round(np.geomspace(1, min(vocab_size, _MOST_RANKS), 64)).astype(int))
    return [int(rank) for rank in grid]


def distributions_of(ids: Tensor) -> Consume[list[Tensor]]:
    """Make a consumer of R rows of hidden states that returns their distributions.

    It returns the largest probabilities [R, K], the top tokens [R, 3], and the probability of ``ids`` [R].
    """

    def consume(hidden: Tensor, head: Head) -> list[Tensor]:
        p = head.logits(hidden).float().softmax(1)
        largest = p.topk(min(p.shape[1], _MOST_RANKS))
        return [largest.values, largest.indices[:, :_NUM_LIKELIEST], p.gather(1, ids[:, None])[:, 0]]

    return consume


@dataclass(frozen=True)
class Place:
    """A segment of an answer whose distributions are kept."""

    example: int
    """Number of the example in the micro-batch."""
    student_row: int
    """Row of the segment among the micro-batch's answer tokens on the student's side."""
    teacher_row: int
    """Row of the segment among the micro-batch's answer tokens on the teacher's side."""


def places_in(micro_batch: MicroBatch) -> list[Place]:
    """Choose a few segments of each example, away from its ends, where every model is sure."""
    found = []
    (pairs,) = micro_batch.pairs
    for example in range(len(micro_batch.examples)):
        segments = torch.nonzero(pairs.example == example)[:, 0].tolist()
        steps = range(1, _SEGMENTS_PER_EXAMPLE + 1)
        chosen = {segments[len(segments) * step // (_SEGMENTS_PER_EXAMPLE + 1)] for step in steps} if segments else ()
        for segment in sorted(chosen):
            rows = (int(side.compared[segment]) for side in (pairs.student, pairs.teacher))
            found.append(Place(example, *rows))
    return found


class Showcase:
    """The examples that a report shows, and the models' distributions in them.

    Args:
        folder: the run's folder.
        rows: prepared rows; held-out ones where there are some.
        batcher: the student's side of the rows.
        student: the student's tokenizer.
        first: whether this rank writes.
    """

    def __init__(
        self, folder: RunFolder, rows: Dataset, batcher: Batcher, student: PreTrainedTokenizerBase, *, first: bool
    ) -> None:
        self._folder = folder
        self._rows = rows.select(range(min(NUM_EXAMPLES, len(rows))))
        (self._micro_batch,) = batcher.window([np.arange(len(self._rows))])
        self._places = places_in(self._micro_batch)
        self._student = student
        self._first = first

    @property
    def num_examples(self) -> int:
        """Number of the examples that are shown."""
        return len(self._rows)

    @torch.no_grad()
    def student_distributions(self, forward: Forward, device: torch.device) -> list[dict[str, Any]]:
        """Compute the student's distributions at the places shown. Collective.

        Args:
            forward: calls the student with a batch, positions and a consumer.
            device: device of the student.
        """
        rows = torch.tensor([place.student_row for place in self._places], dtype=torch.long)
        return self._said(forward, self._micro_batch.student, rows, self._student, device)

    @torch.no_grad()
    def teacher_distributions(
        self, forward: Forward, batcher: TeacherBatcher, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> list[dict[str, Any]]:
        """Compute the distributions of a loaded teacher at the places shown. Collective.

        Args:
            forward: calls the teacher with a batch, positions and a consumer.
            batcher: the teacher's side of the rows.
            tokenizer: the teacher's tokenizer.
            device: device of the teacher.
        """
        rows = torch.tensor([place.teacher_row for place in self._places], dtype=torch.long)
        return self._said(forward, batcher.batch(self._micro_batch.examples), rows, tokenizer, device)

    def stored_distributions(self, heads: Tensor, right: Tensor) -> list[dict[str, Any]]:
        """Take the distributions at the places shown from stored teacher outputs.

        Args:
            heads: [A, K] largest probabilities at all answer tokens of the examples.
            right: [A] probability of the answer tokens themselves.
        """
        return [_distribution(heads[place.teacher_row], float(right[place.teacher_row]), ()) for place in self._places]

    def _said(
        self,
        forward: Forward,
        side: SideBatch,
        rows: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> list[dict[str, Any]]:
        batch = side.to(device)
        rows = rows.to(device)
        found = forward(batch, batch.answer_rows[rows], distributions_of(batch.answer_ids[rows]))
        largest, tokens, right = (tensor.cpu() for tensor in found)
        return [
            _distribution(
                p, float(q), [(str(tokenizer.decode([i])), float(v)) for i, v in zip(ids.tolist(), p, strict=False)]
            )
            for p, ids, q in zip(largest, tokens, right, strict=True)
        ]

    def write(self, who: Who, **facts: Any) -> None:
        """Keep the snapshot of a model: on the first rank, as JSON, without secrets."""
        if self._first:
            self._keep(self._folder.report_snapshot(who), facts)

    def write_beginning(self, teacher: PreTrainedTokenizerBase | None, names: tuple[str, str]) -> None:
        """Keep the places shown as text, and the first answers as both tokenizers cut them.

        Args:
            teacher: the teacher's tokenizer; None with a stored teacher.
            names: what the student's and the teacher's tokenizer are called.
        """
        if not self._first:
            return
        self._keep(self._folder.report_places, [self._described(place) for place in self._places])
        views = alignments(self._rows, self._student, teacher, names)
        self._keep(self._folder.report_alignments, [view.to_json() for view in views])

    def _keep(self, file: Path, content: Any) -> None:
        file.parent.mkdir(exist_ok=True)
        # Synchronized: once training goes on, nobody can look at these models again.
        write_whole(file, json.dumps(Redactor().tree(content)), sync=True)

    def _described(self, place: Place) -> dict[str, Any]:
        row = self._rows[place.example]
        first = int((self._micro_batch.student.answer_example < place.example).sum())
        index = place.student_row - first
        ids = [row["student_ids"][token] for token in row["student_answers"]]
        segments = row["student_segments"]
        stop = next((int(start) for start in segments if start > index), len(ids))
        before = str(self._student.decode(ids[:index], clean_up_tokenization_spaces=False))
        text = str(self._student.decode(ids[index:stop], clean_up_tokenization_spaces=False))
        return {"prompt": row["prompt"], "before": before[-_CONTEXT_CHARACTERS:], "text": text}


def _distribution(p: Tensor, right: float, likeliest: Sequence[tuple[str, float]]) -> dict[str, Any]:
    shown = [(rank, float(p[rank - 1])) for rank in ranks_shown(len(p))]
    # A logarithm has no place for zero, and what is below this nobody sees.
    points = [[rank, float(f"{value:.4g}")] for rank, value in shown if value > 1e-9]
    return {"points": points, "right": right, "likeliest": [[token, value] for token, value in likeliest]}
