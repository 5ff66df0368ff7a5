"""The pairing of an example's two sides: which token positions of one correspond to which of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
from datasets import Features, List, Value

from uld_ds.conversations import KINDS, PartKind
from uld_ds.data.encoding import EncodedSide
from uld_ds.data.examples import Example
from uld_ds.data.matching import same_answers
from uld_ds.data.rendering import Rendered
from uld_ds.data.turn_pairing import Alignment, TurnPairing
from uld_ds.tokenization.spans import AlignmentError

if TYPE_CHECKING:
    # Sides know models, and with them PyTorch: whoever pairs two texts that it has encoded itself needs neither.
    from uld_ds.data.sides import Side, TextSide

SIDES = ("student", "teacher")


class PairRow(TypedDict):
    """One prepared example, as it is stored.

    ``*_answers`` are the places in ``*_ids`` of the tokens that a model is to learn, in order: those that spell an
    answer, and those that end its turn (``*_in_text`` tells them apart). Segment n is the half-open range
    ``*_segments[n]`` to ``*_segment_stops[n]`` of *them*, the same bytes on both sides; the end of a turn is a
    segment too where both sides have one. A model with an encoder has its prompt in ``*_encoder_ids``, and ``*_ids``
    are its decoder's; ``*_length`` counts both. ``*_last_turn`` is where the last answer begins in ``*_ids``.
    """

    student_ids: np.ndarray
    student_encoder_ids: np.ndarray
    student_length: int
    student_answers: np.ndarray
    student_in_text: np.ndarray
    student_segments: np.ndarray
    student_segment_stops: np.ndarray
    student_last_turn: int
    teacher_ids: np.ndarray
    teacher_encoder_ids: np.ndarray
    teacher_length: int
    teacher_answers: np.ndarray
    teacher_in_text: np.ndarray
    teacher_segments: np.ndarray
    teacher_segment_stops: np.ndarray
    teacher_last_turn: int
    answer_bytes: int


def pair(
    student: EncodedSide,
    teacher: EncodedSide,
    *,
    alignment: Alignment,
    student_max: int,
    teacher_max: int,
    skip_ends: tuple[bool, bool] = (False, False),
) -> PairRow:
    """Pair the two sides of one example into a row.

    Args:
        student: Tokens of the student.
        teacher: Tokens of the teacher for the same answers, with equally many parts in each.
        alignment: ``segments``, or ``positional`` for the paper's pairing of the n-th token with the n-th.
        student_max: Most tokens on the student's side. What is longer ends at the last boundary that both
            sides share; what follows, the end of that turn and later turns, are then not part of the example.
        teacher_max: Most tokens on the teacher's side, likewise.
        skip_ends: With ``positional``, whether the tokens that end a turn are left out of the pairs; of the
            student, of the teacher. (With segments, an end is paired with an end.)

    Raises:
        ValueError: nothing of the first answer fits, or the sides do not show the same answers.
    """
    for name, side, most in zip(SIDES, (student, teacher), (student_max, teacher_max), strict=True):
        if not any(len(part.spans) for turn in side.turns for part in turn.parts):
            raise ValueError("the answer has no tokens")
        check_encoder_length(side, most, name)
    pairing = TurnPairing(alignment, (student_max, teacher_max), skip_ends)
    for student_turn, teacher_turn in zip(student.turns, teacher.turns, strict=True):
        if not pairing.add(student_turn, teacher_turn):
            break
    if pairing.num_bytes == 0:
        firsts = [side.turns[0].parts[0].first for side in (student, teacher)]
        raise ValueError(
            f"nothing of the answer fits: the prompt takes {firsts[0]} of {student_max} student tokens, "
            f"{firsts[1]} of {teacher_max} teacher tokens (max_length)"
        )
    row: Any = {"answer_bytes": pairing.num_bytes}
    for name, collected, side in zip(SIDES, pairing.sides, (student, teacher), strict=True):
        row |= {f"{name}_{column}": values for column, values in collected.columns(side).items()}
    return cast("PairRow", row)


def check_encoder_length(side: EncodedSide, most: int, name: str) -> None:
    """Check that a prompt fits into an encoder: one that is cut asks something else.

    Args:
        side: Tokens of the side.
        most: Most tokens that its encoder may read.
        name: ``student`` or ``teacher``, for messages.

    Raises:
        ValueError: the prompt is longer.
    """
    if len(side.encoder_ids) > most:
        raise ValueError(f"the prompt takes {len(side.encoder_ids)} of {most} {name} tokens (max_length)")


IDS = List(Value("int32"))
_OF_SIDE = {
    "ids": IDS,
    "encoder_ids": IDS,
    "answers": IDS,
    "in_text": List(Value("bool")),
    "segments": IDS,
    "segment_stops": IDS,
    "length": Value("int32"),
    "last_turn": Value("int32"),
}
FEATURES = Features(
    {
        **{f"{side}_{name}": feature for side in SIDES for name, feature in _OF_SIDE.items()},
        "answer_bytes": Value("int32"),
        "prompt": Value("string"),
        "notes": List(Value("string")),
        "digest": Value("string"),
    }
)


class Pairing:
    """The work of preparing examples for a run: both sides rendered, encoded and aligned.

    Args:
        student: Side of the student.
        teacher: Side of the teacher.
        alignment: As in ``pair``.
        learn: The recipe's ``data.learn``: which parts of answers carry loss.
        turns: The recipe's ``data.turns``; with ``all``, every answer of a conversation, if both sides show them.
        skip_ends: As in ``pair``.
    """

    features = FEATURES
    answered = True

    def __init__(
        self,
        student: TextSide,
        teacher: Side,
        *,
        alignment: Alignment,
        turns: str,
        learn: Sequence[PartKind] = KINDS,
        skip_ends: tuple[bool, bool] = (False, False),
    ) -> None:
        self._learn = tuple(learn)
        self._student = student
        self._teacher = teacher
        self._alignment: Alignment = alignment
        self._skip_ends = skip_ends
        self._all_answers = turns == "all" and student.shows_all_answers and teacher.shows_all_answers

    def identity(self) -> dict[str, Any]:
        """Return all that decides the rows, besides the examples: both sides and how they are aligned."""
        sides = {"student": self._student.identity(), "teacher": self._teacher.identity()}
        chosen = {"all_answers": self._all_answers, "learn": sorted(self._learn)}
        return {**sides, "alignment": [self._alignment, *self._skip_ends], **chosen}

    def __call__(self, examples: Sequence[Example]) -> list[dict[str, Any] | str]:
        """Make a row of FEATURES of each example, or say what is wrong with it."""
        results: list[dict[str, Any] | str] = [""] * len(examples)
        good: list[tuple[int, Rendered, Rendered]] = []
        notes: dict[int, frozenset[str]] = {}
        chosen = [example if self._all_answers else example.only_last() for example in examples]
        for place, example in enumerate(chosen):
            try:
                sides = self._student.render(example), self._teacher.render(example)
                student, teacher, notes[place] = same_answers(*sides, self._learn)
                good.append((place, student, teacher))
            except ValueError as error:
                results[place] = str(error)
        prompts = {place: student.prompt for place, student, _ in good}
        for place, row in self._pairs(good):
            results[place] = row
            if isinstance(row, dict):
                digest = chosen[place].digest()
                row |= {"prompt": prompts[place], "digest": digest, "notes": sorted(notes[place])}
        return results

    def _pairs(self, good: Sequence[tuple[int, Rendered, Rendered]]) -> list[tuple[int, dict[str, Any] | str]]:
        try:
            students = self._student.encode([student for _, student, _ in good])
            teachers = self._teacher.encode([teacher for _, _, teacher in good])
        except AlignmentError as error:
            if len(good) == 1:
                return [(good[0][0], str(error))]
            # Find out which of them it was, one at a time.
            return [pair for item in good for pair in self._pairs([item])]
        paired: list[tuple[int, dict[str, Any] | str]] = []
        for (place, _, _), student, teacher in zip(good, students, teachers, strict=True):
            try:
                row = pair(
                    student,
                    teacher,
                    alignment=self._alignment,
                    student_max=self._student.max_tokens(student),
                    teacher_max=self._teacher.max_tokens(teacher),
                    skip_ends=self._skip_ends,
                )
                paired.append((place, dict(row)))
            except ValueError as error:
                paired.append((place, str(error)))
        return paired
