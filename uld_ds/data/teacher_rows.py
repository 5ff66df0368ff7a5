"""The preparation of the teacher's side alone, to precompute its outputs before there is a student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, List, Value

from uld_ds.data.encoding import EncodedSide
from uld_ds.data.pairing import IDS, check_encoder_length
from uld_ds.data.rendering import Rendered
from uld_ds.data.sides import TextSide
from uld_ds.data.sources import Example
from uld_ds.tokenization.spans import AlignmentError

TEACHER_FEATURES = Features(
    {
        "teacher_ids": IDS,
        "teacher_encoder_ids": IDS,
        "teacher_answers": IDS,
        "teacher_in_text": List(Value("bool")),
        "teacher_length": Value("int32"),
        "turns": IDS,
        "token_bytes": IDS,
        "answer_bytes": Value("int32"),
        "digest": Value("string"),
    }
)


class TeacherEncoding:
    """The work of preparing examples for a teacher alone: rendered, encoded, and cut at its ``max_length``.

    A row's ``turns`` are, flattened, [k, 3]: tokens that spell an answer, tokens that end its turn, bytes of its
    text. ``token_bytes`` are the bytes that each spelling token covers; of an answer that was cut they do not add up
    to its text. ``answer_bytes`` are those that are covered.
    """

    features = TEACHER_FEATURES

    def __init__(self, side: TextSide, *, turns: str) -> None:
        self._side = side
        self._all_answers = turns == "all" and side.shows_all_answers

    def identity(self) -> dict[str, Any]:
        """Return all that decides the rows, besides the examples: the side, and whether all answers are in them."""
        return {"teacher": self._side.identity(), "all_answers": self._all_answers}

    def __call__(self, examples: Sequence[Example]) -> list[dict[str, Any] | str]:
        """Make a row of TEACHER_FEATURES of each example, or say what is wrong with it."""
        results: list[dict[str, Any] | str] = [""] * len(examples)
        good: list[tuple[int, Rendered]] = []
        chosen = [example if self._all_answers else example.only_last() for example in examples]
        for place, example in enumerate(chosen):
            try:
                good.append((place, self._side.render(example)))
            except ValueError as error:
                results[place] = str(error)
        for place, row in self._rows(good):
            results[place] = row | {"digest": chosen[place].digest()} if isinstance(row, dict) else row
        return results

    def _rows(self, good: Sequence[tuple[int, Rendered]]) -> list[tuple[int, dict[str, Any] | str]]:
        try:
            encoded = self._side.encode([rendered for _, rendered in good])
        except AlignmentError as error:
            if len(good) == 1:
                return [(good[0][0], str(error))]
            # Find out which of them it was, one at a time.
            return [row for item in good for row in self._rows([item])]
        rows: list[tuple[int, dict[str, Any] | str]] = []
        for (place, rendered), side in zip(good, encoded, strict=True):
            sizes = [len(answer.encode()) for answer in rendered.shown()]
            try:
                rows.append((place, teacher_row(side, sizes, self._side.max_tokens(side))))
            except ValueError as error:
                rows.append((place, str(error)))
        return rows


def teacher_row(side: EncodedSide, sizes: Sequence[int], max_length: int) -> dict[str, Any]:
    """Make a row of TEACHER_FEATURES but for the digest.

    Args:
        side: Tokens of the teacher.
        sizes: Bytes of each answer's text.
        max_length: Most tokens; what is longer is cut at a token, and its turn's end is then not part of the row.

    Raises:
        ValueError: nothing of the first answer fits.
    """
    check_encoder_length(side, max_length, "teacher")
    answers: list[np.ndarray] = []
    in_text: list[np.ndarray] = []
    turns: list[list[int]] = []
    token_bytes: list[np.ndarray] = []
    for turn, size in zip(side.turns, sizes, strict=True):
        whole = turn.end <= max_length
        spelling = min(turn.stop, max_length) - turn.first
        if spelling <= 0:
            break
        ending = turn.end - turn.stop if whole else 0
        answers.append(np.arange(turn.first, turn.first + spelling + ending))
        in_text.append(np.arange(spelling + ending) < spelling)
        turns.append([spelling, ending, size])
        token_bytes.append(turn.spans[:spelling, 1] - turn.spans[:spelling, 0])
        if not whole:
            break
    if not turns:
        first = side.turns[0].first
        raise ValueError(f"nothing of the answer fits: the prompt takes {first} of {max_length} teacher tokens")
    places = np.concatenate(answers).astype(np.int32)
    covered = np.concatenate(token_bytes)
    return {
        "teacher_ids": side.ids[: places[-1] + 1],
        "teacher_encoder_ids": side.encoder_ids,
        "teacher_length": int(places[-1]) + 1 + len(side.encoder_ids),
        "teacher_answers": places,
        "teacher_in_text": np.concatenate(in_text),
        "turns": np.array(turns, np.int32).flatten(),
        "token_bytes": covered.astype(np.int32),
        "answer_bytes": int(covered.sum()),
    }
