"""A whole conversation on both sides, block by block: for a terminal, for a page, for a program.

A *block* is what both sides show at one place of the conversation: a prompt, which is read only; a marker or the end of
a turn, which each side writes in its own way; or a part of an answer, which both write alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from uld_ds.alignment.segments import Segment
from uld_ds.conversations import KINDS, PartKind
from uld_ds.data.notes import NOTES
from uld_ds.reporting.alignment_view import (
    AlignmentView,
    SideView,
    TokenView,
    low_rate_warning,
    summary_of,
    visible,
)
from uld_ds.reporting.conversation_sides import PairedConversation, SpokenSide

BlockKind = Literal["prompt", "marker", "reasoning", "text", "tool_calls", "end"]

_NAMES = {"tool_calls": "tool calls", "end": "end of the turn"}
_MOST_CHARACTERS = 240


@dataclass(frozen=True)
class Block:
    """What both sides show at one place of a conversation.

    Attributes:
        kind: what it is; a part of an answer is called by its kind.
        answer: number of the answer that it stands before or in, from 1.
        holds: kinds of the parts of answers that stand in it and are not aligned, if it is no part itself.
        learned: whether its tokens carry loss.
        student: the student's tokens; perhaps none.
        teacher: the teacher's.
        segments: what of them is compared, as ranges of these tokens.
    """

    kind: BlockKind
    answer: int
    holds: tuple[PartKind, ...]
    learned: bool
    student: list[TokenView]
    teacher: list[TokenView]
    segments: list[Segment]

    @property
    def is_event(self) -> bool:
        """Whether it is a marker or an end that is learned: one segment, if both sides have it."""
        return self.learned and self.kind in ("marker", "end")

    @property
    def label(self) -> str:
        """What it is, in words."""
        name = _NAMES.get(self.kind, self.kind)
        held = " and ".join(_NAMES.get(kind, kind) for kind in self.holds)
        if self.kind == "prompt":
            return f"prompt, with {held} that no loss is on" if held else name
        if not self.learned:
            return f"{held or name}: no loss"
        if self.segments:
            return f"{name} with {held}" if held else name
        if not self.is_event:
            return f"{name}: not compared, one side begins it within a token"
        return f"{name} of the {'student' if self.student else 'teacher'} alone"

    def prompt_texts(self) -> dict[str, str]:
        """Return what each side reads, with line feeds and the like made visible, shortened in the middle."""
        return {"student": _shortened(self.student), "teacher": _shortened(self.teacher)}

    def rows(self) -> AlignmentView:
        """Return its tokens as the alignment of a text; what is not compared is one segment."""
        whole = [Segment(range(len(self.student)), range(len(self.teacher)))]
        text = b"".join(token.covered for token in self.student or self.teacher).decode(errors="replace")
        return AlignmentView(
            text, SideView("student", self.student), SideView("teacher", self.teacher), self.segments or whole
        )

    def to_json(self) -> dict[str, Any]:
        """Convert the block to plain data: tokens as ``_tokens_json`` has them, segments as half-open ranges."""
        return {
            "kind": self.kind,
            "answer": self.answer,
            "learned": self.learned,
            "holds": list(self.holds),
            "student": _tokens_json(self.student),
            "teacher": _tokens_json(self.teacher),
            "segments": [
                {
                    "student": [segment.student.start, segment.student.stop],
                    "teacher": [segment.teacher.start, segment.teacher.stop],
                }
                for segment in self.segments
            ],
        }


@dataclass(frozen=True)
class ConversationView:
    """A conversation in blocks.

    Attributes:
        student: the student's side, with its text and all of its tokens.
        teacher: the teacher's.
        blocks: the blocks, in order.
        notes: sentences on what a side drops, and the like, by name.
    """

    student: SpokenSide
    teacher: SpokenSide
    blocks: list[Block]
    notes: dict[str, str]

    @classmethod
    def of(cls, paired: PairedConversation, *, after: int = 0) -> ConversationView:
        """Lay a conversation out in blocks.

        Args:
            paired: the conversation on both sides.
            after: number of messages after its last answer, which are left out.
        """
        notes = {name: f"Conversations like this one {NOTES[name]}." for name in sorted(paired.notes)}
        if paired.left_out:
            notes["earlier_answers"] = (
                f"A text template shows the last answer alone: earlier ones ({paired.left_out}) are read, not learned."
            )
        if after:
            notes["after"] = f"What stands after the last answer ({after} of the messages) is left out."
        return cls(paired.student, paired.teacher, list(_blocks(paired)), notes)

    @property
    def num_answers(self) -> int:
        """Number of answers that are aligned."""
        return len(self.student.encoded.turns)

    @property
    def num_segments(self) -> int:
        """Number of segments of answers' text; markers and ends are not counted."""
        return sum(len(block.segments) for block in self._parts)

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Numbers of the student's and the teacher's tokens that spell answers."""
        return sum(len(block.student) for block in self._parts), sum(len(block.teacher) for block in self._parts)

    @property
    def num_events(self) -> tuple[int, int]:
        """Number of markers and ends that are learned, and of those that both sides have."""
        events = [block for block in self.blocks if block.is_event]
        return len(events), sum(bool(block.segments) for block in events)

    @property
    def alignment_rate(self) -> float:
        """Share of the student's tokens of answers that begin a segment, 0 to 1, as training reports it."""
        return self.num_segments / self.num_tokens[0]

    @property
    def tokens_per_segment(self) -> tuple[float, float]:
        """Mean numbers of student and of teacher tokens in a segment."""
        return self.num_tokens[0] / self.num_segments, self.num_tokens[1] / self.num_segments

    @property
    def summary(self) -> tuple[str, str, str]:
        """Figures of the conversation, in three lines."""
        events, of_both = self.num_events
        shown = "1 event" if events == 1 else f"{events} events"
        return (
            *summary_of(self.num_segments, *self.num_tokens),
            f"{shown} (markers and ends of turns), {of_both} of them on both sides",
        )

    @property
    def warning(self) -> str | None:
        """Warning to whoever wants to distil such conversations; None if there is nothing to warn of."""
        return low_rate_warning(self.alignment_rate)

    def to_json(self) -> dict[str, Any]:
        """Convert the view to plain data: both sides' texts, the blocks, the rates, the notes."""
        student, teacher = self.tokens_per_segment
        return {
            **{
                role: {
                    "name": side.name,
                    "template": side.template,
                    "text": side.rendered.text,
                    "num_tokens": len(side.tokens),
                }
                for role, side in (("student", self.student), ("teacher", self.teacher))
            },
            "blocks": [block.to_json() for block in self.blocks],
            "num_segments": self.num_segments,
            "num_events": dict(zip(("all", "of_both"), self.num_events, strict=True)),
            "alignment_rate": self.alignment_rate,
            "tokens_per_segment": {"student": student, "teacher": teacher},
            "notes": self.notes,
        }

    @property
    def _parts(self) -> list[Block]:
        return [block for block in self.blocks if block.kind in KINDS and block.segments]


def _blocks(paired: PairedConversation) -> Iterator[Block]:
    """Cut both sides' tokens at the same places; what is learned and compared is as the prepared row has it."""
    layout = _Layout(paired)
    sides = paired.student.encoded.turns, paired.teacher.encoded.turns
    at = (0, 0)
    for number, turns in enumerate(zip(*sides, strict=True), 1):
        stops: list[tuple[BlockKind, tuple[int, int]]] = [("prompt", (turns[0].lead, turns[1].lead))]
        for parts in zip(*(turn.parts for turn in turns), strict=True):
            kind = paired.student.rendered.parts[parts[0].part].kind
            stops += [("marker", (parts[0].first, parts[1].first)), (kind, (parts[0].stop, parts[1].stop))]
        stops.append(("end", (turns[0].end, turns[1].end)))
        for kind, stop in stops:
            if stop != at:
                yield layout.block(kind, number, at, stop)
            at = stop


class _Layout:
    """What the prepared row says of each token, by its place on its side."""

    def __init__(self, paired: PairedConversation) -> None:
        self._sides = paired.student, paired.teacher
        row: Any = paired.row
        self._answers = [row[f"{name}_answers"] for name in ("student", "teacher")]
        self._starts = [
            answers[row[f"{name}_segments"]]
            for name, answers in zip(("student", "teacher"), self._answers, strict=True)
        ]
        self._stops = [
            answers[row[f"{name}_segment_stops"] - 1] + 1
            for name, answers in zip(("student", "teacher"), self._answers, strict=True)
        ]
        self._unaligned = [_unaligned(side) for side in self._sides]

    def block(self, kind: BlockKind, answer: int, start: tuple[int, int], stop: tuple[int, int]) -> Block:
        ranges = list(zip(start, stop, strict=True))
        tokens = [side.tokens[first:last] for side, (first, last) in zip(self._sides, ranges, strict=True)]
        learned = any(
            bool(np.any((places >= first) & (places < last)))
            for places, (first, last) in zip(self._answers, ranges, strict=True)
        )
        inside = np.flatnonzero((self._starts[0] >= start[0]) & (self._starts[0] < stop[0]))
        segments = [
            Segment(
                *(
                    range(int(s[n]) - own, int(e[n]) - own)
                    for s, e, own in zip(self._starts, self._stops, start, strict=True)
                )
            )
            for n in inside
        ]
        holds = () if kind in KINDS else self._kinds_in(tokens)
        return Block(kind, answer, holds, learned, tokens[0], tokens[1], segments)

    def _kinds_in(self, tokens: list[list[TokenView]]) -> tuple[PartKind, ...]:
        found: set[PartKind] = set()
        for own, pieces in zip(tokens, self._unaligned, strict=True):
            if own:
                begin, end = own[0].span[0], own[-1].span[1]
                found |= {kind for kind, first, last in pieces if max(begin, first) < min(end, last)}
        return tuple(kind for kind in KINDS if kind in found)


def _unaligned(side: SpokenSide) -> list[tuple[PartKind, int, int]]:
    """List the bytes of the parts that a side shows, and that are not aligned."""
    text = side.shown.text
    aligned = [(place.start, place.stop) for turn in side.rendered.turns for place in turn.parts]
    places = [place for turn in side.shown.turns for place in turn.parts]
    return [
        (side.shown.parts[place.part].kind, len(text[: place.start].encode()), len(text[: place.stop].encode()))
        for place in places
        if not any(start < place.stop and place.start < stop for start, stop in aligned)
    ]


def _tokens_json(tokens: list[TokenView]) -> dict[str, Any]:
    """Convert tokens to ids, names, bytes (hexadecimal) and spans in the side's text (bytes, half-open)."""
    return {
        "ids": [token.id for token in tokens],
        "tokens": [token.token for token in tokens],
        "bytes": [token.covered.hex() for token in tokens],
        "spans": [list(token.span) for token in tokens],
    }


def _shortened(tokens: list[TokenView]) -> str:
    data = b"".join(token.covered or token.shown.encode() for token in tokens)
    text = " ".join(visible(word) if word else "" for word in data.split(b" "))
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
