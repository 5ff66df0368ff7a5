"""The pairing of an example's two sides: which token positions of one correspond to which of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast

import numpy as np
from datasets import Features, List, Value

from uld_ds.alignment.segments import segment_boundaries
from uld_ds.data.encoding import EncodedSide, EncodedTurn
from uld_ds.data.rendering import Rendered
from uld_ds.data.sides import Side, TextSide, same_answers
from uld_ds.data.sources import Example
from uld_ds.tokenization.spans import AlignmentError

Alignment = Literal["segments", "positional"]
SIDES = ("student", "teacher")


class PairRow(TypedDict):
    """One prepared example, as it is stored.

    ``*_answers`` are the places in ``*_ids`` of the tokens that a model is to learn, in order: those that spell an
    answer, and those that end its turn (``*_in_text`` tells them apart). Segment n is the half-open range
    ``*_segments[n]`` to ``*_segment_stops[n]`` of *them*, the same bytes on both sides; the end of a turn is a
    segment too where both sides have one. A model with an encoder has its prompt in ``*_encoder_ids``, and ``*_ids``
    are its decoder's; ``*_length`` counts both.
    """

    student_ids: np.ndarray
    student_encoder_ids: np.ndarray
    student_length: int
    student_answers: np.ndarray
    student_in_text: np.ndarray
    student_segments: np.ndarray
    student_segment_stops: np.ndarray
    teacher_ids: np.ndarray
    teacher_encoder_ids: np.ndarray
    teacher_length: int
    teacher_answers: np.ndarray
    teacher_in_text: np.ndarray
    teacher_segments: np.ndarray
    teacher_segment_stops: np.ndarray
    answer_bytes: int


@dataclass(frozen=True)
class _Kept:
    """The part of one turn that is in the example."""

    tokens: tuple[int, int]
    """Tokens of its answer, the student's and the teacher's."""
    whole: bool
    """Whether the end of the turn is in it too."""


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
        teacher: Tokens of the teacher for the same answers.
        alignment: ``segments``, or ``positional`` for the paper's pairing of the n-th token with the n-th.
        student_max: Most tokens on the student's side. What is longer ends at the last boundary that both
            sides share; the end of that turn, and later turns, are then not part of the example.
        teacher_max: Most tokens on the teacher's side, likewise.
        skip_ends: With ``positional``, whether the tokens that end a turn are left out of the pairs; of the
            student, of the teacher. (With segments, an end is paired with an end.)

    Raises:
        ValueError: nothing of the first answer fits, or the sides do not show the same answers.
    """
    if any(len(turn.spans) == 0 for side in (student, teacher) for turn in side.turns):
        raise ValueError("the answer has no tokens")
    for name, side, most in zip(SIDES, (student, teacher), (student_max, teacher_max), strict=True):
        check_encoder_length(side, most, name)
    sides = _Side(student), _Side(teacher)
    num_bytes = 0
    for student_turn, teacher_turn in zip(student.turns, teacher.turns, strict=True):
        starts = segment_boundaries(student_turn.spans, teacher_turn.spans)
        kept = _fitting(student_turn, teacher_turn, *starts, student_max, teacher_max)
        if kept.tokens[0]:
            num_bytes += int(student_turn.spans[kept.tokens[0] - 1, 1])
            ends = [turn.end - turn.stop if kept.whole else 0 for turn in (student_turn, teacher_turn)]
            if alignment == "segments":
                runs = _segment_runs(starts, kept, ends)
            else:
                runs = _positional_runs(kept, ends, skip_ends)
            for collected, turn, count, ending, run in zip(
                sides, (student_turn, teacher_turn), kept.tokens, ends, runs, strict=True
            ):
                collected.add(turn.first, count, ending, run)
        if not kept.whole:
            break
    if num_bytes == 0:
        raise ValueError(
            f"nothing of the answer fits: the prompt takes {student.turns[0].first} of {student_max} student tokens, "
            f"{teacher.turns[0].first} of {teacher_max} teacher tokens (max_length)"
        )
    row: Any = {"answer_bytes": num_bytes}
    for name, collected in zip(SIDES, sides, strict=True):
        row |= {f"{name}_{column}": values for column, values in collected.columns().items()}
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


def _fitting(
    student: EncodedTurn,
    teacher: EncodedTurn,
    student_starts: np.ndarray,
    teacher_starts: np.ndarray,
    student_max: int,
    teacher_max: int,
) -> _Kept:
    num_student, num_teacher = len(student.spans), len(teacher.spans)
    if student.end <= student_max and teacher.end <= teacher_max:
        return _Kept((num_student, num_teacher), whole=True)
    # A cut before segment k keeps the tokens before it on both sides; after the last segment, all of them.
    student_cuts = np.append(student_starts, num_student)
    teacher_cuts = np.append(teacher_starts, num_teacher)
    fits = (student.first + student_cuts <= student_max) & (teacher.first + teacher_cuts <= teacher_max)
    last = int(np.flatnonzero(fits)[-1]) if fits.any() else 0
    return _Kept((int(student_cuts[last]), int(teacher_cuts[last])), whole=False)


def _segment_runs(starts: Sequence[np.ndarray], kept: _Kept, ends: Sequence[int]) -> list[np.ndarray]:
    """List the segments of a turn on each side: [s, 2] half-open ranges of its tokens; the last one is its end."""
    runs = []
    for of_side, count, ending in zip(starts, kept.tokens, ends, strict=True):
        inside = of_side[of_side < count]
        run = np.stack([inside, np.append(inside[1:], count)], axis=1)
        runs.append(np.append(run, [[count, count + ending]], axis=0) if min(ends) > 0 else run)
    return runs


def _positional_runs(kept: _Kept, ends: Sequence[int], skip_ends: tuple[bool, bool]) -> list[np.ndarray]:
    """Pair the n-th token of one side with the n-th of the other; what ends a turn is a token like others.

    (Boizard et al., arXiv 2402.12030: both answers are cut to the shorter one.)
    """
    counts = [count + (0 if skip else ending) for count, ending, skip in zip(kept.tokens, ends, skip_ends, strict=True)]
    tokens = np.arange(min(counts))
    return [np.stack([tokens, tokens + 1], axis=1)] * 2


class _Side:
    """A collector of one side's answer tokens, turn by turn."""

    def __init__(self, encoded: EncodedSide) -> None:
        self._ids = encoded.ids
        self._encoder_ids = encoded.encoder_ids
        self._answers: list[np.ndarray] = []
        self._in_text: list[np.ndarray] = []
        self._segments: list[np.ndarray] = []
        self._count = 0

    def add(self, first: int, num_tokens: int, num_ending: int, segments: np.ndarray) -> None:
        self._answers.append(np.arange(first, first + num_tokens + num_ending))
        self._in_text.append(np.arange(num_tokens + num_ending) < num_tokens)
        self._segments.append(segments + self._count)
        self._count += num_tokens + num_ending

    def columns(self) -> dict[str, Any]:
        answers = np.concatenate(self._answers).astype(np.int32)
        segments = np.concatenate(self._segments).astype(np.int32)
        # What follows the last token that is learned would be read for nothing.
        ids = self._ids[: answers[-1] + 1]
        return {
            "ids": ids,
            "encoder_ids": self._encoder_ids,
            "length": len(ids) + len(self._encoder_ids),
            "answers": answers,
            "in_text": np.concatenate(self._in_text),
            "segments": segments[:, 0],
            "segment_stops": segments[:, 1],
        }


IDS = List(Value("int32"))
_OF_SIDE = {
    "ids": IDS,
    "encoder_ids": IDS,
    "answers": IDS,
    "in_text": List(Value("bool")),
    "segments": IDS,
    "segment_stops": IDS,
    "length": Value("int32"),
}
FEATURES = Features(
    {
        **{f"{side}_{name}": feature for side in SIDES for name, feature in _OF_SIDE.items()},
        "answer_bytes": Value("int32"),
        "prompt": Value("string"),
        "digest": Value("string"),
    }
)


class Pairing:
    """The work of preparing examples for a run: both sides rendered, encoded and aligned.

    Args:
        student: Side of the student.
        teacher: Side of the teacher.
        alignment: As in ``pair``.
        turns: The recipe's ``data.turns``; with ``all``, every answer of a conversation, if both sides show them.
        skip_ends: As in ``pair``.
    """

    features = FEATURES

    def __init__(
        self,
        student: TextSide,
        teacher: Side,
        *,
        alignment: Alignment,
        turns: str,
        skip_ends: tuple[bool, bool] = (False, False),
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._alignment: Alignment = alignment
        self._skip_ends = skip_ends
        self._all_answers = turns == "all" and student.shows_all_answers and teacher.shows_all_answers

    def identity(self) -> dict[str, Any]:
        """Return all that decides the rows, besides the examples: both sides and how they are aligned."""
        sides = {"student": self._student.identity(), "teacher": self._teacher.identity()}
        return {**sides, "alignment": [self._alignment, *self._skip_ends], "all_answers": self._all_answers}

    def __call__(self, examples: Sequence[Example]) -> list[dict[str, Any] | str]:
        """Make a row of FEATURES of each example, or say what is wrong with it."""
        results: list[dict[str, Any] | str] = [""] * len(examples)
        good: list[tuple[int, Rendered, Rendered]] = []
        chosen = [example if self._all_answers else example.only_last() for example in examples]
        for place, example in enumerate(chosen):
            try:
                good.append((place, *same_answers(self._student.render(example), self._teacher.render(example))))
            except ValueError as error:
                results[place] = str(error)
        for place, row in self._pairs(good):
            results[place] = row
            if isinstance(row, dict):
                try:
                    row |= {"prompt": self._student.prompt(chosen[place]), "digest": chosen[place].digest()}
                except ValueError as error:  # a conversation that begins with its answer, for one
                    results[place] = str(error)
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
