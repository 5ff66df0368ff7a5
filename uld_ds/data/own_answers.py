"""Answers that the student itself has sampled, as prepared rows.

They go the way of any other answer: rendered and encoded for the teacher, matched, aligned and paired. One thing
differs: the student's side keeps the tokens that were sampled, whatever its tokenizer would write for that text, and
its byte spans are theirs. An answer that the student has ended has its end as last segment, beside the teacher's; one
that was cut off has no end on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uld_ds.conversations import KINDS, PartKind
from uld_ds.data.encoding import EncodedSide
from uld_ds.data.examples import Example
from uld_ds.data.matching import same_answers
from uld_ds.data.pairing import pair
from uld_ds.data.rendering import Rendered
from uld_ds.data.sampled_replies import ReplyFinder, SampledIds, SampledReply
from uld_ds.data.sides import TextSide
from uld_ds.tokenization.spans import AlignmentError

TOO_LONG = "nothing fits into max_length"
NOT_LOCATED = "the teacher's tokens cannot be located in it"
NO_PROMPT = "nothing stands before it"


@dataclass(frozen=True)
class _Matched:
    """A reply on both sides, narrowed to what both show."""

    place: int
    reply: SampledReply
    prompt: np.ndarray
    student: Rendered
    teacher: Rendered
    notes: frozenset[str]


class OwnAnswers:
    """The work of preparing answers that a student has sampled.

    Args:
        student: Side of the student, a decoder-only model.
        teacher: Side of the teacher.
        learn: The recipe's ``data.learn``: which parts of answers carry loss.
    """

    def __init__(self, student: TextSide, teacher: TextSide, *, learn: Sequence[PartKind] = KINDS) -> None:
        self._student = student
        self._teacher = teacher
        self._learn = tuple(learn)
        self._replies = ReplyFinder(student)

    def text(self, sampled: SampledIds, prompt_ids: Sequence[int] | np.ndarray = ()) -> str:
        """Return a sampled answer as text for people: with its control tokens, without what ended it.

        Args:
            sampled: The answer.
            prompt_ids: Ids of the prompt that it was sampled after.
        """
        return self._replies.text(sampled, prompt_ids)

    def __call__(
        self, examples: Sequence[Example], sampled: Sequence[SampledIds], prompts_ids: Sequence[np.ndarray]
    ) -> list[dict[str, Any] | str]:
        """Make a row of ``FEATURES`` of each answer, or say why it is left out, in few and short words.

        Args:
            examples: Conversations that were answered; what they have as last answer does not count.
            sampled: The answers.
            prompts_ids: [p] ids of the prompt that each of them was sampled after.
        """
        results: list[dict[str, Any] | str] = [""] * len(examples)
        good: list[_Matched] = []
        for place, (example, own, prompt) in enumerate(zip(examples, sampled, prompts_ids, strict=True)):
            try:
                good.append(self._matched(place, example, own, np.asarray(prompt)))
            except ValueError as error:
                results[place] = str(error)
        for matched, teacher in zip(good, self._teachers(good), strict=True):
            results[matched.place] = teacher if isinstance(teacher, str) else self._row(matched, teacher)
        return results

    def _matched(self, place: int, example: Example, own: SampledIds, prompt: np.ndarray) -> _Matched:
        if len(prompt) == 0:
            raise ValueError(NO_PROMPT)
        reply = self._replies.read(example, own, prompt)
        shown = self._teacher.render(reply.example)
        student, teacher, notes = same_answers(reply.rendered, shown, self._learn)
        if not reply.ended:
            student, teacher = _cut_off(student), _cut_off(teacher)
        return _Matched(place, reply, prompt, student, teacher, notes)

    def _teachers(self, good: Sequence[_Matched]) -> list[EncodedSide | str]:
        """Encode the teacher's side of each answer, or say why that cannot be done."""
        try:
            encoded = self._teacher.encode([matched.teacher for matched in good])
        except ValueError as error:
            if len(good) == 1:
                return [NOT_LOCATED if isinstance(error, AlignmentError) else str(error)]
            # Find out which of them it was, one at a time.
            return [side for matched in good for side in self._teachers([matched])]
        return [
            side if matched.reply.ended else _without_end(side) for matched, side in zip(good, encoded, strict=True)
        ]

    def _row(self, matched: _Matched, teacher: EncodedSide) -> dict[str, Any] | str:
        student = matched.reply.encoded(matched.student, matched.prompt)
        most = self._student.max_tokens(student), self._teacher.max_tokens(teacher)
        try:
            row = pair(student, teacher, alignment="segments", student_max=most[0], teacher_max=most[1])
        except ValueError:
            return TOO_LONG
        known = {
            "prompt": matched.reply.rendered.prompt,
            "digest": matched.reply.example.digest(),
            "notes": sorted(matched.notes),
        }
        return dict(row) | known


def _cut_off(side: Rendered) -> Rendered:
    """Return a conversation that stops with its last part."""
    turn = side.turns[-1]
    typed = tuple(place for place in side.typed if place[1] <= turn.stop)
    turns = (*side.turns[:-1], replace(turn, end=turn.stop))
    return replace(side, text=side.text[: turn.stop], turns=turns, typed=typed, is_cut=True)


def _without_end(side: EncodedSide) -> EncodedSide:
    """Return a side without the tokens after its last part: an encoder puts an end of text where there is none."""
    turn = side.turns[-1]
    stop = turn.parts[-1].stop
    return replace(side, ids=side.ids[:stop], turns=(*side.turns[:-1], replace(turn, end=stop)))
