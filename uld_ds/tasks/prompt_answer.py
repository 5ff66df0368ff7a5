"""The task of any rows with a prompt and an answer, in the columns that the recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from uld_ds.tasks.registry import register
from uld_ds.tasks.task import TEACHER_ANSWER, Question, Row, Task, text

REFERENCES = "references"


@dataclass(frozen=True)
class PromptAnswer(Task):
    """A task of prompts and answers; a column ``references`` may hold several answers that count as right."""

    name: str = "prompt_answer"
    about: str = "a prompt and its answer"
    hub: str | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("f1", "precision", "recall", "em", "rouge")
    prompt: str = "prompt"
    answer: str = "answer"

    reads_columns_of_recipe: ClassVar[bool] = True

    def with_columns(self, columns: Mapping[str, str | None]) -> Task:
        """Return the task with the recipe's columns ``prompt`` and ``answer``."""
        return replace(self, prompt=columns["prompt"] or self.prompt, answer=columns["answer"] or self.answer)

    def missing_column(self, names: Sequence[str], *, answered: bool = True) -> str | None:
        """Return the column of the prompt, or of the answer where one is needed, if it is missing, else None."""
        if self.prompt not in names:
            return self.prompt
        return self.answer if answered and not {self.answer, TEACHER_ANSWER} & set(names) else None

    def question(self, row: Row, shots: int | None = None) -> Question:
        """Read the prompt as the user's turn, alike for both sides.

        Raises:
            ValueError: a prompt, answer or reference that is no text.
        """
        asked = {"role": "user", "content": text(row, self.prompt)}
        own = text(row, self.answer) if row.get(self.answer) is not None else None
        taught = text(row, TEACHER_ANSWER) if row.get(TEACHER_ANSWER) is not None else own
        return Question((asked,), None, taught, references_of(row, own))


def references_of(row: Row, answer: str | None) -> tuple[str, ...]:
    """Read the row's ``references``, or its only answer.

    Raises:
        ValueError: ``references`` holds something else than texts.
    """
    given = row.get(REFERENCES)
    if given is None:
        return () if answer is None or not answer.strip() else (answer,)
    if not isinstance(given, list) or not all(isinstance(reference, str) for reference in given):
        raise ValueError(f"column {REFERENCES!r} does not hold a list of texts")
    return tuple(dict.fromkeys(reference for reference in given if reference.strip()))


TASK = register(PromptAnswer())
