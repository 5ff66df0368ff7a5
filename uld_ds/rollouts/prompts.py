"""The prompts of rollouts, prepared once: conversations without an answer, and the student's token ids before it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from uld_ds.data.examples import Example
from uld_ds.data.sides import TextSide
from uld_ds.recipe import Recipe
from uld_ds.recipe.models import ONLY_TEACHER

PROMPT_FEATURES = Features(
    {
        "conversation": Value("string"),
        "prompt_ids": List(Value("int32")),
        "prompt": Value("string"),
        "notes": List(Value("string")),
        "digest": Value("string"),
    }
)


class PromptWork:
    """The work of preparing prompts for rollouts: those that both sides can read and that leave room for an answer.

    Args:
        recipe: Recipe of the run.
        student: Side of the student.
        teachers: Side of each teacher by its name; of the only one, ``teacher``.
    """

    features = PROMPT_FEATURES
    answered = False

    def __init__(self, recipe: Recipe, student: TextSide, teachers: Mapping[str, TextSide]) -> None:
        assert recipe.rollouts is not None
        self._student = student
        self._teachers = dict(teachers)
        self._settings = {teacher.name: teacher for teacher in recipe.teachers}
        self._column = recipe.data.columns.teacher
        self._student_max = recipe.student.max_length
        self._new = recipe.rollouts.max_new_tokens

    def identity(self) -> dict[str, Any]:
        """Return all that decides the rows, besides the examples: all sides, and the room for an answer."""
        sides = {name: side.identity() for name, side in self._teachers.items()}
        known = sides if list(sides) == [ONLY_TEACHER] else {"teachers": sides, "judge": self._column}
        return {"rollouts": True, "student": self._student.identity(), **known, "max_new_tokens": self._new}

    def __call__(self, examples: Sequence[Example]) -> list[dict[str, Any] | str]:
        """Make a row of each prompt, or say what is wrong with it."""
        return [self._row(example) for example in examples]

    def _row(self, example: Example) -> dict[str, Any] | str:
        try:
            prompt = self._student.prompt(example)
            # Tokenizers and files take nothing else, and say less about it.
            prompt.encode()
            ids = self._student.prompt_ids(example)
            judges = [name for name in self._teachers if example.judge in (None, name)]
            taught = {name: len(self._teachers[name].prompt_ids(example)) for name in judges}
        except UnicodeEncodeError as error:
            return f"the prompt is not valid Unicode: a lone surrogate at character {error.start}"
        except ValueError as error:
            return str(error)
        room = self._student_max - self._new
        if len(ids) > room:
            return (
                f"the prompt takes {len(ids)} student tokens, and student.max_length {self._student_max} leaves {room} "
                f"beside rollouts.max_new_tokens {self._new}: lower it, or raise student.max_length"
            )
        for name, tokens in taught.items():
            settings = self._settings[name]
            if tokens >= settings.max_length:
                return (
                    f"the prompt takes {tokens} teacher tokens of {settings.max_length}, which leaves no room for an "
                    f"answer: raise {settings.key}.max_length"
                )
        if not ids:
            return "nothing stands before the answer, and the student's tokenizer has no BOS or EOS to put there"
        return {
            "conversation": _written(example),
            "prompt_ids": np.asarray(ids, np.int32),
            "prompt": prompt,
            "notes": [],
            "digest": replace(example, messages=example.prompt, answers=()).digest(),
        }


def _written(example: Example) -> str:
    """Write what an example asks as JSON, for `asked_of`."""
    teacher = None if example.teacher is None else list(example.teacher)
    judge = [] if example.judge is None else [example.judge]
    content = [list(example.prompt), teacher, example.tools, example.template_arguments, *judge]
    return json.dumps(content, ensure_ascii=False)


def asked_of(rows: Dataset, number: int) -> Example:
    """Read the example of a prompt, whose answer is empty.

    Args:
        rows: Rows that `PromptWork` has made.
        number: Number of the row.
    """
    messages, teacher, tools, arguments, *judge = json.loads(rows[number]["conversation"])
    return Example(
        (*messages, {"role": "assistant", "content": ""}),
        (len(messages),),
        None if teacher is None else tuple(teacher),
        None if tools is None else tuple(tools),
        arguments,
        *judge,
    )
