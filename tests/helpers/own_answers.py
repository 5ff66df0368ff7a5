"""Sampled answers, and what their rows say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from uld_ds.data.examples import Example
from uld_ds.data.own_answers import OwnAnswers
from uld_ds.data.sides import TextSide
from uld_ds.generation.sampling import Sampled
from uld_ds.recipe import ModelSettings


def sampled(ids: Sequence[int], *, ended: bool) -> Sampled:
    """An answer of which nothing but the tokens counts."""
    return Sampled(np.array(ids, np.int32), np.zeros(len(ids), np.float32), ended)


def text_side(tokenizer: Any, role: str, *, special_tokens: Any = "control", **settings: Any) -> TextSide:
    """A side by its tokenizer's chat template, or by the ``prompt_template`` given."""
    chosen = {"model": "x", "max_length": 512} | settings
    return TextSide(tokenizer, ModelSettings(**chosen), role, special_tokens=special_tokens)


def prompt_ids(side: TextSide, example: Example) -> np.ndarray:
    return np.array(side.prompt_ids(example), np.int32)


def one_row(
    student: TextSide, teacher: TextSide, example: Example, ids: Sequence[int], *, ended: bool, **options: Any
) -> dict[str, Any] | str:
    """The row of one answer, or why there is none."""
    own = OwnAnswers(student, teacher, **options)
    (row,) = own([example], [sampled(ids, ended=ended)], [prompt_ids(student, example)])
    return row


def tokens(side: TextSide, row: dict[str, Any], name: str) -> list[str]:
    """The learned tokens of one side as its vocabulary has them."""
    ids = np.asarray(row[f"{name}_ids"])[row[f"{name}_answers"]].tolist()
    return [side.tokenizer.convert_ids_to_tokens(int(index)) for index in ids]


def segments(student: TextSide, teacher: TextSide, row: dict[str, Any]) -> list[tuple[list[str], list[str]]]:
    """The tokens of each segment, on both sides."""
    both = []
    for side, name in ((student, "student"), (teacher, "teacher")):
        said = tokens(side, row, name)
        ranges = zip(row[f"{name}_segments"], row[f"{name}_segment_stops"], strict=True)
        both.append([said[start:stop] for start, stop in ranges])
    return list(zip(*both, strict=True))
