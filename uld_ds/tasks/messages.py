"""The task of any conversations, in the column that the recipe names; the last answer is the one that is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from uld_ds.conversations import read_messages
from uld_ds.tasks.prompt_answer import references_of
from uld_ds.tasks.registry import register
from uld_ds.tasks.task import TEACHER_ANSWER, Question, Row, Task, text


@dataclass(frozen=True)
class Messages(Task):
    """A task of conversations: the last assistant turn, if it ends one, is the answer, and all before it the prompt."""

    name: str = "messages"
    about: str = "a conversation and the answer that ends it"
    hub: str | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("f1", "precision", "recall", "em", "rouge")
    column: str = "messages"

    reads_columns_of_recipe: ClassVar[bool] = True

    def with_columns(self, columns: Mapping[str, str | None]) -> Task:
        """Return the task with the recipe's column ``messages``."""
        return replace(self, column=columns["messages"] or self.column)

    def missing_column(self, names: Sequence[str], *, answered: bool = True) -> str | None:
        """Return the conversation's column if it is missing, else None."""
        return None if self.column in names else self.column

    def question(self, row: Row, shots: int | None = None) -> Question:
        """Read all messages before the answer; a conversation that ends with a question has no answer yet.

        Raises:
            ValueError: no messages, none before the answer, or an answer or reference that is no text.
        """
        said = read_messages(row.get(self.column), self.column)
        own = said.pop()["content"] if said and said[-1]["role"] == "assistant" else None
        if not said:
            raise ValueError(f"column {self.column!r} asks nothing")
        taught = text(row, TEACHER_ANSWER) if row.get(TEACHER_ANSWER) is not None else own
        return Question(tuple(said), None, taught, references_of(row, own))


TASK = register(Messages())
