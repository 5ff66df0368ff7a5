"""Examples: conversations and the answers in them that are distilled, and the reading of rows as such."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from datasets import Dataset

from uld_ds.conversations import Message, Part, parts_of, read_mapping, read_messages, read_tools
from uld_ds.conversations.messages import REASONING_NAMES, checked_text
from uld_ds.data.json_rows import are_closed, opened
from uld_ds.errors import UserError
from uld_ds.recipe import ColumnSettings, DataSettings
from uld_ds.tasks.registry import get_task
from uld_ds.tasks.task import TEACHER_ANSWER, TEACHER_REASONING, Question, Task


@dataclass(frozen=True)
class Example:
    """One conversation, which ends with an assistant turn, and which of its messages are answers to distil."""

    messages: tuple[Message, ...]
    answers: tuple[int, ...]
    """Indices of messages, in order; the last message is always one of them."""
    teacher: tuple[Message, ...] | None = None
    """Messages that the teacher reads before the last answer; None: those that the student reads."""
    tools: tuple[dict[str, Any], ...] | None = None
    """JSON schemas of the tools that may be called, for both sides."""
    template_arguments: dict[str, Any] | None = None
    """Variables of this conversation for the chat templates of both sides."""
    judge: str | None = None
    """Name of the teacher that judges it, where each row names one; it is no part of what is said."""

    @classmethod
    def of(cls, prompt: str, answer: str) -> Example:
        """Make an Example of one question and its answer."""
        return cls(({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}), (1,))

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The content of the last answer; empty where it has none."""
        return self.messages[-1]["content"] or ""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts of all answers, in order."""
        return tuple(part for place in self.answers for part in parts_of(self.messages[place], place))

    def digest(self) -> str:
        """Compute the sha256 over all messages and which of them are answers: 64 hexadecimal digits."""
        said: list[Any] = [self.messages, self.answers, *([] if self.teacher is None else [self.teacher])]
        if self.tools or self.template_arguments:
            said.append([self.tools, self.template_arguments])
        if calls := [message["tool_calls"] for message in self.messages if "tool_calls" in message]:
            said.append(json.dumps(calls, ensure_ascii=False))  # the order of arguments is rendered, too
        content = json.dumps(said, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def only_last(self) -> Example:
        """Return the same conversation with its last turn as the only answer."""
        return self if len(self.answers) == 1 else replace(self, answers=self.answers[-1:])

    def for_teacher(self, *, own_system: bool = True) -> Example:
        """Return the last answer after the messages that the teacher reads before it, itself if it has none.

        Args:
            own_system: Whether system messages among these stay.
        """
        if self.teacher is None:
            return self
        before = [message for message in self.teacher if own_system or message["role"] != "system"]
        return replace(self, messages=(*before, self.messages[-1]), answers=(len(before),), teacher=None)


def as_prompt(question: Question) -> Example:
    """Make an Example of a question whose answer may still be missing: it is then empty."""
    answer = {"role": "assistant", "content": question.answer or ""}
    return Example(
        (*question.messages, answer),
        (len(question.messages),),
        question.teacher,
        question.tools,
        question.template_arguments,
    )


def check_columns(rows: Dataset, columns: ColumnSettings, key: str) -> None:
    """Check that the columns that a recipe names are in the rows.

    Raises:
        UserError: one is not; names it and the columns that are there.
    """
    # (Not those that the recipe mentions: one that was written by a run mentions every key.)
    named = ["prompt", "answer"] if columns.messages is None else ["messages", *columns.named_beside_messages()]
    for role in named:
        name = getattr(columns, role)
        if name is not None and name not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise UserError(
                f"data.columns.{role}",
                f"{key} has no column {name!r}",
                f"set it to one of the columns there: {there}",
            )


def as_example(row: dict[str, Any], columns: ColumnSettings) -> Example:
    """Read one row as an Example; of a conversation, every assistant turn that says something is an answer.

    Raises:
        ValueError: no answer, or messages that do not hold an assistant turn.
    """
    if columns.messages is None:
        example = Example.of(_text_of(row, columns.prompt), _text_of(row, columns.answer))
    else:
        turns = _up_to_answer(read_messages(_value_of(row, columns.messages), columns.messages), columns.messages)
        spoken = (i for i, turn in enumerate(turns) if turn["role"] == "assistant" and parts_of(turn, i))
        tools, arguments = conversation_options(row, columns)
        example = Example(tuple(turns), tuple(spoken), tools=tools, template_arguments=arguments)
    if not parts_of(example.messages[-1], 0):
        raise ValueError("the answer is empty")
    return example


def conversation_options(
    row: dict[str, Any], columns: ColumnSettings
) -> tuple[tuple[dict[str, Any], ...] | None, dict[str, Any] | None]:
    """Read a row's tools and its variables for chat templates; None for what it does not have.

    Raises:
        ValueError: a column holds something else than it should.
    """
    tools = read_tools(row.get(columns.tools), columns.tools)
    arguments = read_mapping(row.get(columns.template_arguments), columns.template_arguments)
    return None if tools is None else tuple(tools), arguments or None


class ExampleReader:
    """A reader of rows as Examples, by the recipe's task; where it names none, by its columns alone.

    Args:
        data: The recipe's ``data``.
        teachers: Names of the recipe's teachers, of which a row names its judge where ``data.columns.teacher`` is set;
            by default nobody asks who judges a row.
    """

    def __init__(self, data: DataSettings, teachers: Sequence[str] = ()) -> None:
        self.task = task_of(data)
        self._teachers = tuple(teachers)
        self._named = data.task is not None
        self._shots = data.shots
        columns = data.columns
        if data.task == "messages" and columns.messages is None:
            columns = columns.model_copy(update={"messages": "messages"})
        self._columns = columns

    def identity(self) -> dict[str, Any]:
        """Return all that decides what rows become, as plain values.

        (A task's own texts are in the rows it makes.)
        """
        named = {"task": self.task.name, "shots": self._shots} if self._named else {}
        return {"columns": self._columns.model_dump(mode="json", exclude={"teacher"}), **named}

    def check(self, rows: Dataset, key: str, *, answered: bool = True) -> None:
        """Check that rows have the columns that they need.

        Args:
            rows: Rows of a source.
            key: Recipe key of the source, for messages.
            answered: Whether the rows must have answers.

        Raises:
            UserError: a column is missing.
        """
        if are_closed(rows):
            return  # each row has columns of its own
        if self._teachers and self._columns.teacher is not None and self._columns.teacher not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise UserError(
                "data.columns.teacher",
                f"{key} has no column {self._columns.teacher!r}",
                f"set it to one of the columns there: {there}",
            )
        if not self._named and answered:
            check_columns(rows, self._columns, key)
        missing = self.task.missing_column(rows.column_names, answered=answered)
        if missing is not None:
            wanted = " or ".join(map(repr, missing.split("|")))
            there = ", ".join(rows.column_names)
            raise UserError(
                "data.task", f"{self.task.name!r} needs column {wanted}, {key} has {there}", "correct the task or data"
            )

    def question(self, row: dict[str, Any]) -> Question:
        """Read what a row asks, whether it has an answer or not.

        Raises:
            ValueError: the row cannot be used.
        """
        row = dict(opened(row))
        question = self.task.question(row, self._shots)
        if self._columns.messages is None:
            return question
        tools, arguments = conversation_options(row, self._columns)
        return replace(question, tools=tools, template_arguments=arguments)

    def __call__(self, row: dict[str, Any]) -> Example:
        """Read a row as an Example.

        Raises:
            ValueError: the row cannot be used.
        """
        row = dict(opened(row))
        return self._judged(self._read(row), row)

    def prompt(self, row: dict[str, Any]) -> Example:
        """Read what a row asks as an Example, whose answer may still be missing.

        Raises:
            ValueError: the row cannot be used.
        """
        return self._judged(as_prompt(self.question(row)), row)

    def rows_of(self, rows: Dataset, judge: str) -> list[int]:
        """List the numbers of the rows that one teacher judges, and of those that name no teacher or cannot be read."""
        column = self._columns.teacher
        if column is None:
            return list(range(len(rows)))
        whole = rows if are_closed(rows) else rows.select_columns([column])

        def said(row: dict[str, Any]) -> Any:
            try:
                return opened(row).get(column)
            except ValueError:
                return None

        names = map(said, whole)
        return [number for number, name in enumerate(names) if name == judge or name not in self._teachers]

    def _judged(self, example: Example, row: Mapping[str, Any]) -> Example:
        is_routed = self._teachers and self._columns.teacher is not None
        return replace(example, judge=self._judge(opened(row))) if is_routed else example

    def _judge(self, row: Mapping[str, Any]) -> str:
        """Read the name of the teacher that judges a row."""
        column = self._columns.teacher
        name = None if column is None else row.get(column)
        if name not in self._teachers:
            said = "has no teacher's name" if name is None else f"has {name!r}"
            raise ValueError(f"column {column!r} {said}: the recipe's teachers are {', '.join(self._teachers)}")
        return str(name)

    def _read(self, row: dict[str, Any]) -> Example:
        if not self._named or (self.task.reads_columns_of_recipe and row.get(TEACHER_ANSWER) is None):
            return as_example(row, self._columns)
        question = self.question(row)
        if question.answer is None or not question.answer.strip():
            raise ValueError("the answer is empty")
        answer = {"role": "assistant", "content": question.answer}
        if row.get(TEACHER_REASONING):
            answer[REASONING_NAMES[0]] = checked_text(row[TEACHER_REASONING], TEACHER_REASONING)
        return Example(
            (*question.messages, answer),
            (len(question.messages),),
            question.teacher,
            question.tools,
            question.template_arguments,
        )


def task_of(data: DataSettings) -> Task:
    """Return the recipe's task; where it names none, the one that its columns suggest."""
    name = data.task or ("messages" if data.columns.messages is not None else "prompt_answer")
    return get_task(name).with_columns(data.columns.model_dump())


def _up_to_answer(turns: list[Message], column: str) -> list[Message]:
    """Return a conversation up to its last assistant turn."""
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise ValueError(f"column {column!r} has no assistant turn")
    return turns


def _value_of(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise ValueError(f"there is no column {column!r}")
    return row[column]


def _text_of(row: dict[str, Any], column: str) -> str:
    return checked_text(_value_of(row, column), column)
