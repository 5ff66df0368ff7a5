"""The interface of tasks, and the base of those whose rows are one question each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from uld_ds.conversations import Message

Row = Mapping[str, Any]
Words = Literal["published", "unicode"]
"""How scores read answers: as those published with ULD do, which know English alone, or as words of any script."""

TEACHER_ANSWER = "teacher_answer"
"""Column of a teacher's own answer, as ``uld-ds generate`` writes it; where it is, that answer is distilled."""
TEACHER_REASONING = "teacher_reasoning"
"""Column of the reasoning before that answer."""
NO_RESPONSE = "no response"
"""Answer where the text does not hold one."""


@dataclass(frozen=True)
class Question:
    """The question of one row, for both sides, with its answers."""

    messages: tuple[Message, ...]
    """Messages that the student reads before it answers."""
    teacher: tuple[Message, ...] | None
    """Messages that the teacher reads before the same answer; None: those that the student reads."""
    answer: str | None
    """Answer to be distilled; None in a row without an answer."""
    references: tuple[str, ...]
    """Answers that count as right; none where the text does not hold one."""
    tools: tuple[dict[str, Any], ...] | None = None
    """JSON schemas of the tools that may be called."""
    template_arguments: dict[str, Any] | None = None
    """Variables of this question for chat templates."""


@dataclass(frozen=True)
class Shot:
    """An example that the teacher is shown: a prompt and its answer."""

    prompt: str
    answer: str


class Task(ABC):
    """A task: how rows of a dataset are asked and answers scored."""

    name: str
    """Name that recipes give it by."""
    about: str
    """Description in one line."""
    hub: str | None
    """Id of the hub's dataset whose columns the task reads; None for any columns."""
    max_new_tokens: int
    """Most tokens of a generated answer."""
    stop: tuple[str, ...]
    """Texts before the first of which a generated answer ends."""
    metrics: tuple[str, ...]
    """Names of metrics in uld_ds.evaluation.metrics."""
    words: Words = "unicode"
    """How these read answers; ``published`` where scores are to be those of the paper."""

    reads_columns_of_recipe: ClassVar[bool] = False
    """Whether ``data.columns`` says where prompt and answer are."""

    def with_columns(self, columns: Mapping[str, str | None]) -> Task:
        """Return the task with the recipe's ``data.columns``; itself, where it knows its own."""
        return self

    @abstractmethod
    def missing_column(self, names: Sequence[str], *, answered: bool = True) -> str | None:
        """Find the first column that rows must have and that is not among ``names``, with its alternatives.

        Args:
            names: Columns that are there.
            answered: Whether rows must have answers; prompts for a teacher need none.

        Returns:
            The column, alternatives as ``a|b``; None if all are there.
        """

    @abstractmethod
    def question(self, row: Row, shots: int | None = None) -> Question:
        """Read what a row asks.

        Args:
            row: Row of the data.
            shots: Number of examples that the teacher is shown. Default: the task's own number.

        Raises:
            ValueError: a column holds something else than it should.
        """


@dataclass(frozen=True)
class Fields:
    """The prompt, answer and references that a TextTask finds in a row."""

    prompt: str
    answer: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class TextTask(Task):
    """A task whose rows are one question each: zero-shot for the student, few-shot for the teacher."""

    name: str
    about: str
    hub: str | None
    columns: tuple[str, ...]
    """Columns that rows must have; ``a|b`` is one or the other."""
    read: Callable[[Row], Fields]
    """Function that reads prompt, answer and references of a row."""
    system: str
    """The teacher's system prompt."""
    shots: tuple[Shot, ...]
    """Examples that the teacher is shown before the question."""
    max_new_tokens: int
    metrics: tuple[str, ...]
    stop: tuple[str, ...] = ("\n",)
    words: Words = "unicode"

    def missing_column(self, names: Sequence[str], *, answered: bool = True) -> str | None:
        """Return the first of ``columns`` that is not among ``names``, else None."""
        for alternatives in self.columns:
            if not set(alternatives.split("|")) & set(names):
                return alternatives
        return None

    def question(self, row: Row, shots: int | None = None) -> Question:
        """Read what a row asks; a teacher's own answer, where the row has one, replaces the dataset's.

        Raises:
            ValueError: a column holds something else than it should.
        """
        fields = self.read(row)
        shown = self.shots if shots is None else self.shots[:shots]
        asked = {"role": "user", "content": fields.prompt}
        examples = [
            {"role": role, "content": content}
            for shot in shown
            for role, content in (("user", shot.prompt), ("assistant", shot.answer))
        ]
        return Question(
            messages=(asked,),
            teacher=({"role": "system", "content": self.system}, *examples, asked),
            answer=text(row, TEACHER_ANSWER) if row.get(TEACHER_ANSWER) is not None else fields.answer,
            references=fields.references,
        )


def text(row: Row, *names: str) -> str:
    """Read the text in the first of some columns that is there.

    Raises:
        ValueError: the column holds no text, or none of them is there.
    """
    name = next((name for name in names if row.get(name) is not None), names[0])
    value = row.get(name)
    if not isinstance(value, str):
        raise ValueError(f"column {name!r} holds {type(value).__name__}, not text")
    return value


def texts(row: Row, name: str, key: str) -> tuple[str, ...]:
    """Read the texts of a column of ``{key: [text, ...]}`` or ``[{key: text}, ...]``, each once, in order.

    (Datasets of the hub come in either form, depending on the version of their files.)

    Raises:
        ValueError: the column holds something else.
    """
    value = row.get(name)
    if isinstance(value, Mapping):
        found = value.get(key)
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        found = [item.get(key) for item in value]
    else:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"column {name!r} does not hold a list of {key!r}")
    return tuple(dict.fromkeys(found))
