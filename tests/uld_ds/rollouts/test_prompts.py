"""Prompts of rollouts, prepared: what both sides can read, with room for an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.recipe_trees import message, tree_with
from uld_ds.data.prepare import prepare_split
from uld_ds.data.prepared import Split
from uld_ds.data.sides import TextSide
from uld_ds.data.statistics import facts_of_prompts
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.rollouts.prompts import PromptWork, asked_of
from uld_ds.tokenization.training import train_tokenizer

CHAT = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is a path?"},
        {"role": "assistant", "content": "A way."},
        {"role": "user", "content": "And a list?"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "chat_template_kwargs": {"enable_thinking": False},
}
TEXTS = [f"what is {number} and a path or list?" for number in range(50)]


def recipe_with(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Recipe:
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": "files", "path": str(folder / "d.jsonl")}
    tree = {"data__train": source, "data__eval": source, "rollouts": {"max_new_tokens": 8}} | changes
    return parse_recipe(tree_with(**tree))


def prepared(recipe: Recipe, folder: Path) -> Split:
    student = TextSide(train_tokenizer("unigram", 300, TEXTS), recipe.student, "student")
    teacher = TextSide(train_tokenizer("bpe", 300, TEXTS), recipe.teacher_named(), "teacher")
    work = PromptWork(recipe, student, {"teacher": teacher})
    return prepare_split(recipe.data.train, "data.train", folder / "cache", work, recipe.data, facts_of_prompts)


def test_prompts_need_no_answers_and_keep_all_that_a_template_reads(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, [CHAT], data__columns={"messages": "messages"})
    split = prepared(recipe, tmp_path)
    example = asked_of(split.rows, 0)
    assert list(example.prompt) == CHAT["messages"]
    assert example.messages[-1] == {"role": "assistant", "content": ""}
    assert example.answers == (4,)
    assert example.tools == tuple(CHAT["tools"])
    assert example.template_arguments == CHAT["chat_template_kwargs"]
    assert (split.facts.examples, split.facts.segments) == (1, 0)
    assert np.isnan(split.facts.alignment_rate)
    student = TextSide(train_tokenizer("unigram", 300, TEXTS), recipe.student, "student")
    assert split.rows[0]["prompt"] == student.prompt(example)
    assert split.rows[0]["prompt_ids"] == student.prompt_ids(example)


def test_an_answer_that_is_there_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    with_answer = prepared(recipe_with(tmp_path, [{"prompt": "what is a path?", "answer": "A way."}]), tmp_path)
    without = prepared(recipe_with(tmp_path, [{"prompt": "what is a path?"}]), tmp_path)
    for column in ("conversation", "prompt_ids", "prompt", "digest"):
        assert with_answer.rows[column][:] == without.rows[column][:]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"student__max_length": 40},
            "student tokens, and student.max_length 40 leaves 32 beside rollouts.max_new_tokens 8: lower it",
        ),
        ({"teacher__max_length": 30}, "which leaves no room for an answer: raise teacher.max_length"),
    ],
)
def test_prompts_that_leave_no_room_are_bad_examples(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    rows = [{"prompt": "what is a path?"}, {"prompt": "qxz" * 30}]
    said = message(prepared, recipe_with(tmp_path, rows, **changes), tmp_path)
    assert said.startswith("data.train: row 1: the prompt takes")
    assert problem in said
    skipping = recipe_with(tmp_path, rows, data__on_bad_example="skip", **changes)
    split = prepared(skipping, tmp_path)
    assert (len(split.rows), split.facts.skipped) == (1, 1)


def test_a_prompt_that_is_no_text_is_a_bad_example(tmp_path: Path) -> None:
    rows = [{"prompt": "what is a path?"}, {"prompt": "bad \ud800 text"}]
    said = message(prepared, recipe_with(tmp_path, rows), tmp_path)
    assert "row 1: the prompt is not valid Unicode: a lone surrogate at character" in said
    split = prepared(recipe_with(tmp_path, rows, data__on_bad_example="skip"), tmp_path)
    assert (len(split.rows), split.facts.skipped) == (1, 1)
