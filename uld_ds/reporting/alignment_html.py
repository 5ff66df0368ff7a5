"""An alignment as one HTML page: no scripts, nothing loaded, light and dark, on paper too."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uld_ds.reporting.templates import render

if TYPE_CHECKING:
    from uld_ds.reporting.alignment_view import AlignmentView, TokenView


@dataclass(frozen=True)
class ShownToken:
    """A token as the page shows it."""

    shown: str
    title: str
    is_nothing: bool

    @classmethod
    def of(cls, token: TokenView) -> ShownToken:
        """Describe a token with its id and the bytes that it covers."""
        title = f"{token.token}  id {token.id}  bytes {token.span[0]}-{token.span[1]}"
        return cls(token.shown, title, not token.covered)


@dataclass(frozen=True)
class ShownSegment:
    """The tokens of a segment on both sides."""

    student: list[ShownToken]
    teacher: list[ShownToken]


@dataclass(frozen=True)
class TokenRows:
    """The rows of tokens that the template's macro ``alignment_rows`` shows."""

    direction: str
    segments: list[ShownSegment]

    @classmethod
    def of(cls, view: AlignmentView) -> TokenRows:
        """Make the rows of tokens of an alignment."""
        student, teacher = ([ShownToken.of(token) for token in side.tokens] for side in (view.student, view.teacher))
        segments = [
            ShownSegment([student[n] for n in segment.student], [teacher[n] for n in segment.teacher])
            for segment in view.segments
        ]
        return cls(_direction(view.text), segments)


def alignment_page(view: AlignmentView) -> str:
    """Render the page of an alignment, as a string to be written in UTF-8."""
    return render("alignment.html.j2", view=view, figures=_figures(view), rows=TokenRows.of(view))


def _figures(view: AlignmentView) -> list[tuple[str, str]]:
    student, teacher = view.tokens_per_segment
    return [
        (f"{view.alignment_rate:.0%}", "of the student's tokens begin a segment"),
        (f"{len(view.segments):,}", "segment" if len(view.segments) == 1 else "segments"),
        (f"{student:.2f}", "student tokens per segment"),
        (f"{teacher:.2f}", "teacher tokens per segment"),
    ]


def _direction(text: str) -> str:
    """Choose a text's direction by its first letter that has one, as Unicode has it for paragraphs."""
    directions = (unicodedata.bidirectional(character) for character in text)
    first = next((direction for direction in directions if direction in ("L", "R", "AL")), "L")
    return "ltr" if first == "L" else "rtl"
