"""The prompts of rows of data, each once, whatever order the rows are in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from uld_ds.data.examples import ExampleReader, as_prompt
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """One prompt for a model."""

    id: str
    """sha256 of the text that the model reads."""
    question: str
    """sha256 of what is asked, without how a teacher is asked."""
    row: int
    """Number of its row in the data."""
    ids: np.ndarray
    """Token ids of the prompt."""

    def is_held_out(self, share: float) -> bool:
        """Tell whether the prompt is among the ``share`` of all questions that are kept for evaluation.

        A question is or is not, in whatever data it turns up again.
        """
        return int(self.question[:13], 16) / 16**13 < share


@dataclass
class Prompts:
    """The prompts of some rows, and counts of what became of the other rows."""

    kept: list[Prompt] = field(default_factory=list)
    """Prompts to be answered, ordered by question."""
    rows: int = 0
    """Rows in all."""
    duplicates: int = 0
    """Rows that ask the same as another."""
    too_long: int = 0
    """Prompts with too many tokens."""
    unusable: int = 0
    """Rows that cannot be used."""


def collect_prompts(
    rows: Dataset, reader: ExampleReader, side: TextSide, *, max_tokens: int, on_bad_example: str, key: str
) -> Prompts:
    """Collect the prompts that rows ask one side, each question once.

    Args:
        rows: Rows of the data.
        reader: Reader of rows by the recipe's task.
        side: Side of the teacher, or of another model that answers.
        max_tokens: Most tokens of a prompt.
        on_bad_example: ``error`` or ``skip``.
        key: Key of the data in the recipe.

    Raises:
        UserError: an unusable row under ``on_bad_example: error``, or no usable row.
    """
    found = Prompts(rows=len(rows))
    best: dict[str, tuple[str, Prompt]] = {}
    problem = ""
    for number, row in enumerate(rows):
        try:
            question = reader.question(row)
            example = as_prompt(question)
            text = side.prompt(example)
            ids = np.asarray(side.prompt_ids(example), np.int32)
        except ValueError as error:
            problem = problem or f"row {number}: {error}"
            if on_bad_example == "error":
                fix = "repair the row, or leave such rows out with data.on_bad_example=skip"
                raise UserError(key, problem, fix) from error
            found.unusable += 1
            continue
        options = [question.tools, question.template_arguments]
        name = _digest([question.messages, *(options if any(options) else [])])
        # Of rows that ask the same, the first by content: not by place, which may change.
        content = _digest([question.answer, question.references, json.dumps(row, default=str, sort_keys=True)])
        if name in best:
            found.duplicates += 1
            if best[name][0] <= content:
                continue
        best[name] = content, Prompt(hashlib.sha256(text.encode()).hexdigest(), name, number, ids)
    prompts = [prompt for _, prompt in best.values()]
    found.kept = sorted((p for p in prompts if len(p.ids) <= max_tokens), key=lambda prompt: prompt.question)
    found.too_long = len(prompts) - len(found.kept)
    if not found.kept:
        reason = problem or f"every prompt is longer than the {max_tokens} tokens that max_length has beside an answer"
        raise UserError(
            key,
            f"no usable row among {len(rows)}: {reason}",
            "repair the data, raise max_length, or lower generation.max_new_tokens",
        )
    return found


def batches_by_length(prompts: Iterable[Prompt], batch_size: int) -> list[list[Prompt]]:
    """Batch prompts of similar length, the longest first: what does not fit into memory shows at once."""
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt.ids), prompt.id))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def _digest(content: Any) -> str:
    plain = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
