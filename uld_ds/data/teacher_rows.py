"""The preparation of the teacher's side alone, to precompute its outputs before there is a student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Features, List, Value

from uld_ds.data.encoding import EncodedSide, EncodedTurn
from uld_ds.data.examples import Example
from uld_ds.data.pairing import IDS, check_encoder_length
from uld_ds.data.pieces import JoinedCalls, joined_calls, text_of_size
from uld_ds.data.sides import TextSide
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
        "piece_parts": IDS,
        "piece_texts": List(Value("string")),
        "piece_leaves": IDS,
        "answer_bytes": Value("int32"),
        "digest": Value("string"),
        "notes": List(Value("string")),
    }
)


class TeacherEncoding:
    """The work of preparing examples for a teacher alone: rendered, encoded, and cut at its ``max_length``.

    A row's ``turns`` are, flattened, [k, 3], a row for each piece of an answer (its reasoning, its text, a tool call):
    tokens that spell it, tokens after it that spell no text (a marker, what ends the turn), bytes of its text.
    ``token_bytes`` are the bytes that each spelling token covers; of an answer that was cut they do not add up to its
    text. ``answer_bytes`` are those that are covered. ``piece_*`` say what the pieces are (``PieceLayout``), and are
    empty where each is the text of one answer.
    """

    features = TEACHER_FEATURES
    answered = True

    def __init__(self, side: TextSide, *, turns: str) -> None:
        self._side = side
        self._all_answers = turns == "all" and side.shows_all_answers

    def identity(self) -> dict[str, Any]:
        """Return all that decides the rows, besides the examples: the side, and whether all answers are in them."""
        return {"teacher": self._side.identity(), "all_answers": self._all_answers}

    def __call__(self, examples: Sequence[Example]) -> list[dict[str, Any] | str]:
        """Make a row of TEACHER_FEATURES of each example, or say what is wrong with it."""
        results: list[dict[str, Any] | str] = [""] * len(examples)
        good: list[tuple[int, JoinedCalls]] = []
        chosen = [example if self._all_answers else example.only_last() for example in examples]
        for place, example in enumerate(chosen):
            try:
                good.append((place, joined_calls(self._side.render(example))))
            except ValueError as error:
                results[place] = str(error)
        notes = {place: sorted(joined.rendered.notes_of("teacher")) for place, joined in good}
        for place, row in self._rows(good):
            known = {"digest": chosen[place].digest(), "notes": notes[place]}
            results[place] = row | known if isinstance(row, dict) else row
        return results

    def _rows(self, good: Sequence[tuple[int, JoinedCalls]]) -> list[tuple[int, dict[str, Any] | str]]:
        try:
            encoded = self._side.encode([joined.rendered for _, joined in good])
        except AlignmentError as error:
            if len(good) == 1:
                return [(good[0][0], str(error))]
            # Find out which of them it was, one at a time.
            return [row for item in good for row in self._rows([item])]
        rows: list[tuple[int, dict[str, Any] | str]] = []
        for (place, joined), side in zip(good, encoded, strict=True):
            try:
                rows.append((place, teacher_row(side, joined, self._side.max_tokens(side))))
            except ValueError as error:
                rows.append((place, str(error)))
        return rows


@dataclass
class _Pieces:
    """A collector of the pieces of an example's answers."""

    answers: list[np.ndarray] = field(default_factory=list)
    in_text: list[np.ndarray] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    token_bytes: list[np.ndarray] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)

    def add_text(self, part: int, first: int, spans: np.ndarray, size: int) -> None:
        self._add(first, len(spans), in_text=True)
        self.rows.append([len(spans), 0, size])
        self.token_bytes.append(spans[:, 1] - spans[:, 0])
        self.parts.append(part)

    def add_marker(self, first: int, number: int) -> None:
        """Add tokens that spell no text to the piece before them."""
        self._add(first, number, in_text=False)
        self.rows[-1][1] += number

    def add_lead(self, first: int, number: int) -> None:
        """Add a marker before the first piece of a turn, as a piece without text."""
        self.rows.append([0, 0, 0])
        self.parts.append(-1)
        self.add_marker(first, number)

    def _add(self, first: int, number: int, *, in_text: bool) -> None:
        self.answers.append(np.arange(first, first + number))
        self.in_text.append(np.full(number, in_text))

    def add_turn(self, turn: EncodedTurn, max_length: int) -> bool:
        """Add a turn, as far as it fits; return whether all of it did."""
        # A marker is there if something of what follows it is: a last piece without one was cut.
        needs = [part.first + min(part.stop - part.first, 1) for part in turn.parts]
        if turn.lead < turn.parts[0].first:
            if needs[0] > max_length:
                return False
            self.add_lead(turn.lead, turn.parts[0].first - turn.lead)
        nexts = [*(part.first for part in turn.parts[1:]), turn.end]
        for part, following, need in zip(turn.parts, nexts, [*needs[1:], turn.end], strict=True):
            number = min(part.stop, max_length) - part.first
            if number <= 0 < part.stop - part.first:
                return False
            if part.is_whole:
                self.add_text(part.part, part.first, part.spans[:number], part.size)
            elif number and self.rows:
                self.add_marker(part.first, number)
            if need > max_length:
                return False
            if following > part.stop and self.rows:
                self.add_marker(part.stop, following - part.stop)
        return True


def teacher_row(side: EncodedSide, joined: JoinedCalls, max_length: int) -> dict[str, Any]:
    """Make a row of TEACHER_FEATURES but for the digest and the notes.

    Args:
        side: Tokens of the teacher.
        joined: The text that they encode.
        max_length: Most tokens; what is longer is cut at a token, and its turn's end is then not part of the row.

    Raises:
        ValueError: nothing of the first answer fits.
    """
    check_encoder_length(side, max_length, "teacher")
    pieces = _Pieces()
    for turn in side.turns:
        if not pieces.add_turn(turn, max_length):
            break
    if not pieces.token_bytes:
        first = side.turns[0].parts[0].first
        raise ValueError(f"nothing of the answer fits: the prompt takes {first} of {max_length} teacher tokens")
    places = np.concatenate(pieces.answers).astype(np.int32)
    covered = np.concatenate(pieces.token_bytes)
    return {
        "teacher_ids": side.ids[: places[-1] + 1],
        "teacher_encoder_ids": side.encoder_ids,
        "teacher_length": int(places[-1]) + 1 + len(side.encoder_ids),
        "teacher_answers": places,
        "teacher_in_text": np.concatenate(pieces.in_text),
        "turns": np.array(pieces.rows, np.int32).flatten(),
        "token_bytes": covered.astype(np.int32),
        "answer_bytes": int(covered.sum()),
        **_layout(pieces, joined),
    }


def _layout(pieces: _Pieces, joined: JoinedCalls) -> dict[str, Any]:
    shown = joined.texts()
    all_parts = joined.rendered.parts
    texts = []
    for part, (_, _, size) in zip(pieces.parts, pieces.rows, strict=True):
        told = "" if part < 0 else text_of_size(all_parts[part], size)
        texts.append("" if part < 0 or shown[part] == told else shown[part])
    numbers = {part: number for number, part in enumerate(pieces.parts) if part >= 0}
    leaves = [
        (numbers[first], number, start, stop)
        for first, own in joined.leaves.items()
        if first in numbers
        for number, start, stop in own
    ]
    if pieces.parts == list(range(len(pieces.parts))) and not any(texts) and not leaves:
        return {"piece_parts": [], "piece_texts": [], "piece_leaves": []}
    flat = [value for leaf in leaves for value in leaf]
    return {"piece_parts": pieces.parts, "piece_texts": texts, "piece_leaves": flat}
