"""A batcher of the teacher's side of prepared rows, in batches as large as its memory budget allows.

The teacher's forward has no activations to keep, so its batches are larger than the student's micro-batches, and
grouped by length across all of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from uld_ds.batches import SideBatch
from uld_ds.data.batching import read_rows, side_batch, whole_column
from uld_ds.data.step_plan import first_fit

_COLUMNS = ["teacher_ids", "teacher_encoder_ids", "teacher_answers", "teacher_in_text", "teacher_length"]


class TeacherBatcher:
    """A maker of the teacher's batches.

    Args:
        rows: Rows of prepare.py, those of one teacher.
        padding: Token id that fills up sequences.
        max_tokens: Most tokens of a batch, padding included where there is any (a longer example is alone in one).
    """

    def __init__(self, rows: Dataset, *, padding: int, max_tokens: int) -> None:
        self._rows = rows.select_columns(_COLUMNS).with_format("numpy")
        self._padding = padding
        self._max_tokens = max_tokens
        self.lengths = whole_column(rows, "teacher_length")
        self.judged = np.flatnonzero(self.lengths)
        """Numbers of the examples that the teacher judges: the others have no tokens for it."""
        self.shortest = int(self.judged[np.argmin(self.lengths[self.judged])]) if len(self.judged) else -1
        """Number of the shortest example, the cheapest for a rank with nothing to do."""

    def groups(self, examples: Sequence[int], *, padded: bool = True) -> list[list[int]]:
        """Group examples, longest first, so that each group keeps to ``max_tokens``.

        Args:
            examples: Numbers of the examples.
            padded: Whether the model pads a group to its longest example; without, it costs what its tokens are.
        """
        if not padded:
            return self._packed_groups(examples)
        groups: list[list[int]] = []
        longest = 0
        for example in self._longest_first(examples):
            if not groups or (len(groups[-1]) + 1) * longest > self._max_tokens:
                groups.append([])
                longest = int(self.lengths[example])
            groups[-1].append(example)
        return groups

    def _packed_groups(self, examples: Sequence[int]) -> list[list[int]]:
        """Fill groups first-fit: each example goes to the first that has room for it."""
        ordered = self._longest_first(examples)
        return [[ordered[place] for place in own] for own in first_fit(self.lengths[ordered], self._max_tokens)]

    def _longest_first(self, examples: Sequence[int]) -> list[int]:
        return sorted(examples, key=lambda example: (-self.lengths[example], example))

    def batch(self, examples: Sequence[int]) -> SideBatch:
        """Make the batch of the teacher's side of some examples."""
        return side_batch(read_rows(self._rows, np.asarray(examples)), "teacher", self._padding)
