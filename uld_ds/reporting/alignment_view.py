"""Two tokenizations of one text, lined up where they agree: for a terminal, for a page, for a program.

A heavy bar stands where both tokenizers have a boundary, a light one where only one has; whitespace, control
characters and parts of characters are spelled out, so that every token can be seen.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from uld_ds.alignment.segments import Segment, align
from uld_ds.tokenization.spans import batch_token_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOW_RATE = 0.5
"""Share of student tokens that begin a segment below which a pair of tokenizers deserves a warning."""

_WHITESPACE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
_NOTHING = "∅"
_NO_BASE = {"⟩", *_WHITESPACE.values()}
# Letters and symbols that leave nothing, or only a gap, on a screen.
_BLANK = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}


@dataclass(frozen=True)
class TokenView:
    """One token of a text.

    Attributes:
        id: the token's number in the vocabulary.
        token: the token as the vocabulary writes it.
        span: the half-open range of the text's UTF-8 bytes that the token covers.
        covered: the bytes of that range.
    """

    id: int
    token: str
    span: tuple[int, int]
    covered: bytes

    @property
    def shown(self) -> str:
        """Text that the token covers, with everything invisible made visible."""
        return visible(self.covered)


@dataclass(frozen=True)
class SideView:
    """One side of an alignment: a text's tokens, and what their tokenizer is called."""

    name: str
    tokens: list[TokenView]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, text: str, name: str = "") -> SideView:
        """Cut a text into a tokenizer's tokens.

        Args:
            tokenizer: the tokenizer.
            text: what to cut.
            name: what to call the tokenizer; its own name if empty.

        Raises:
            ValueError: ``text`` is not valid Unicode or cannot be located in its tokens, or there are none.
        """
        ids, spans = (rows[0].tolist() for rows in batch_token_spans(tokenizer, [text]))
        name = name or tokenizer.name_or_path or type(tokenizer).__name__
        if not ids:
            raise ValueError(f"tokenizer {name} makes no tokens of the text")
        data = text.encode()
        written = tokenizer.convert_ids_to_tokens(ids)
        tokens = [
            TokenView(index, str(token), (start, end), data[start:end])
            for index, token, (start, end) in zip(ids, written, spans, strict=True)
        ]
        return cls(name, tokens)


@dataclass(frozen=True)
class AlignmentView:
    """A text, its tokens on both sides, and the segments they form."""

    text: str
    student: SideView
    teacher: SideView
    segments: list[Segment]

    @classmethod
    def of(cls, text: str, student: SideView, teacher: SideView) -> AlignmentView:
        """Align two sides of one text: cut it into segments where both have a boundary."""
        segments = align(*([token.span for token in side.tokens] for side in (student, teacher)))
        return cls(text, student, teacher, segments)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> AlignmentView:
        """Make the view from the plain data of ``to_json``."""
        segments = [Segment(range(*item["student"]), range(*item["teacher"])) for item in record["segments"]]
        return cls(record["text"], _side_of(record["student"]), _side_of(record["teacher"]), segments)

    @property
    def alignment_rate(self) -> float:
        """Share of student tokens that begin a segment, 0 to 1."""
        return len(self.segments) / len(self.student.tokens)

    @property
    def tokens_per_segment(self) -> tuple[float, float]:
        """Mean numbers of student and of teacher tokens in a segment."""
        return len(self.student.tokens) / len(self.segments), len(self.teacher.tokens) / len(self.segments)

    @property
    def summary(self) -> tuple[str, str]:
        """Figures of the alignment, in two lines."""
        return summary_of(len(self.segments), len(self.student.tokens), len(self.teacher.tokens))

    @property
    def warning(self) -> str | None:
        """Warning to whoever wants to distil between these tokenizers; None if there is nothing to warn of."""
        return low_rate_warning(self.alignment_rate)

    def to_json(self) -> dict[str, Any]:
        """Convert the view to plain data: ids, tokens, bytes (hexadecimal), spans, segments (half-open), rates."""
        student, teacher = self.tokens_per_segment
        return {
            "text": self.text,
            "num_bytes": len(self.text.encode()),
            "student": _side_json(self.student),
            "teacher": _side_json(self.teacher),
            "segments": [
                {
                    "student": [segment.student.start, segment.student.stop],
                    "teacher": [segment.teacher.start, segment.teacher.stop],
                    "bytes": list(self._bytes_of(segment)),
                }
                for segment in self.segments
            ],
            "alignment_rate": self.alignment_rate,
            "tokens_per_segment": {"student": student, "teacher": teacher},
        }

    def _bytes_of(self, segment: Segment) -> tuple[int, int]:
        tokens = self.student.tokens
        return tokens[segment.student.start].span[0], tokens[segment.student.stop - 1].span[1]


def view_alignment(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    text: str,
    *,
    student_name: str = "",
    teacher_name: str = "",
) -> AlignmentView:
    """Cut a text by two tokenizers, and align it where they agree.

    Args:
        student: the student's tokenizer.
        teacher: the teacher's tokenizer.
        text: what to cut.
        student_name: what to call the student's tokenizer; its own name if empty.
        teacher_name: what to call the teacher's tokenizer; its own name if empty.

    Raises:
        ValueError: ``text`` is empty, is not valid Unicode, or cannot be located in its tokens; or one side has
            no tokens for it.
    """
    if not text:
        raise ValueError("the text is empty: there is nothing to align")
    sides = SideView.of(student, text, student_name), SideView.of(teacher, text, teacher_name)
    return AlignmentView.of(text, *sides)


def _side_json(side: SideView) -> dict[str, Any]:
    return {
        "name": side.name,
        "ids": [token.id for token in side.tokens],
        "tokens": [token.token for token in side.tokens],
        "bytes": [token.covered.hex() for token in side.tokens],
        "spans": [list(token.span) for token in side.tokens],
    }


def _side_of(record: dict[str, Any]) -> SideView:
    rows = zip(record["ids"], record["tokens"], record["spans"], record["bytes"], strict=True)
    tokens = [TokenView(number, token, (span[0], span[1]), bytes.fromhex(data)) for number, token, span, data in rows]
    return SideView(record["name"], tokens)


def summary_of(segments: int, student_tokens: int, teacher_tokens: int) -> tuple[str, str]:
    """Write the figures of an alignment in two lines, from the numbers of its segments and of both sides' tokens."""
    shown = "1 segment" if segments == 1 else f"{segments} segments"
    student, teacher = student_tokens / segments, teacher_tokens / segments
    return (
        f"{shown}; {segments / student_tokens:.0%} of the student's tokens begin one",
        f"tokens per segment: student {student:.2f}, teacher {teacher:.2f}",
    )


def low_rate_warning(rate: float) -> str | None:
    """Warn of a share of the student's tokens that begin a segment; None if there is nothing to warn of."""
    if rate >= LOW_RATE:
        return None
    return (
        f"only {rate:.0%} of the student's tokens begin a segment, and only there are the two "
        "models compared; look for a student tokenizer that shares more boundaries with the teacher's"
    )


def visible(data: bytes) -> str:
    """Spell bytes out: whitespace as symbols, other invisible characters by number, parts of characters in hex."""
    if not data:
        return _NOTHING
    characters = data.decode(errors="surrogateescape")
    shown = ""
    for is_partial, run in groupby(characters, lambda character: "\ud800" <= character <= "\udfff"):
        if is_partial:
            shown += "⟨" + " ".join(f"{ord(character) - 0xDC00:02X}" for character in run) + "⟩"
        else:
            for character in run:
                shown += _visible_character(character, shown[-1:])
    return shown


def _visible_character(character: str, before: str) -> str:
    if character in _WHITESPACE:
        return _WHITESPACE[character]
    category = unicodedata.category(character)
    # A variation selector makes the character before it one or two cells wide: no two terminals agree.
    is_selector = "VARIATION SELECTOR" in unicodedata.name(character, "")
    if category[0] in "CZ" or is_selector or character in _BLANK:
        return f"⟨U+{ord(character):04X}⟩"
    # A combining mark would land on the bar, or on the sign for something invisible, before it.
    return "◌" + character if category[0] == "M" and (not before or before in _NO_BASE) else character
