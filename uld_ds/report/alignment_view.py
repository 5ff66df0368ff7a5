"""Two tokenizations of one text, lined up where they agree: for a terminal, for a page, for a program.

A heavy bar stands where both tokenizers have a boundary, a light one where only one has; whitespace, control
characters and parts of characters are spelled out, so that every token can be seen.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from uld_ds.alignment import Segment, align, batch_token_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARED, OWN = "┃", "┆"
_WHITESPACE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
_NOTHING = "∅"
_COLOURS = ("cyan", "yellow", "magenta", "green")
_LABEL_WIDTH = len("student ")


@dataclass(frozen=True)
class TokenView:
    """One token.

    Attributes:
        id: its number in the vocabulary.
        token: how the vocabulary writes it.
        span: the half-open range of the text's UTF-8 bytes that it covers.
        covered: those bytes.
    """

    id: int
    token: str
    span: tuple[int, int]
    covered: bytes

    @property
    def shown(self) -> str:
        """What it covers, with everything invisible made visible."""
        return visible(self.covered)


@dataclass(frozen=True)
class SideView:
    """One side's tokens and what its tokenizer is called."""

    name: str
    tokens: list[TokenView]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, text: str, name: str = "") -> SideView:
        """How ``tokenizer`` cuts ``text``.

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
        """Two sides of one text, cut where both have a boundary."""
        segments = align(*([token.span for token in side.tokens] for side in (student, teacher)))
        return cls(text, student, teacher, segments)

    @property
    def alignment_rate(self) -> float:
        """The share of student tokens that begin a segment."""
        return len(self.segments) / len(self.student.tokens)

    @property
    def tokens_per_segment(self) -> tuple[float, float]:
        """The mean number of student and of teacher tokens in a segment."""
        return len(self.student.tokens) / len(self.segments), len(self.teacher.tokens) / len(self.segments)

    @property
    def summary(self) -> str:
        """The figures, in one line."""
        student, teacher = self.tokens_per_segment
        return (
            f"{len(self.segments)} segments; {self.alignment_rate:.0%} of the student's tokens begin one; "
            f"tokens per segment: student {student:.2f}, teacher {teacher:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data: ids, tokens, bytes (hexadecimal), spans, segments (half-open ranges), rates."""
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

    def to_rich(self) -> AlignmentRows:
        """For ``rich.print``: two rows that wrap together at the terminal's width."""
        return AlignmentRows(self)

    def to_html(self) -> str:
        """One self-contained page without scripts, for a light or a dark screen."""
        return _PAGE.format(
            student=escape(self.student.name),
            teacher=escape(self.teacher.name),
            summary=escape(self.summary),
            num_student=len(self.student.tokens),
            num_teacher=len(self.teacher.tokens),
            segments="\n".join(self._segment_html(n, segment) for n, segment in enumerate(self.segments)),
        )

    def _segment_html(self, number: int, segment: Segment) -> str:
        rows = (
            "".join(_token_html(side.tokens[index]) for index in indices)
            for side, indices in ((self.student, segment.student), (self.teacher, segment.teacher))
        )
        student, teacher = (f"<div>{row}</div>" for row in rows)
        return f'<div class="segment hue{number % len(_COLOURS)}">{student}{teacher}</div>'


def view_alignment(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    text: str,
    *,
    student_name: str = "",
    teacher_name: str = "",
) -> AlignmentView:
    """How two tokenizers cut ``text``, and where they agree.

    Args:
        student: the student's tokenizer.
        teacher: the teacher's.
        text: what to cut.
        student_name: what to call the student's tokenizer; its own name if empty.
        teacher_name: the same for the teacher's.

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


def visible(data: bytes) -> str:
    """``data`` with whitespace as symbols, other invisible characters by number, parts of characters in hex."""
    if not data:
        return _NOTHING
    characters = data.decode(errors="surrogateescape")
    parts = []
    for is_partial, run in groupby(characters, lambda character: "\ud800" <= character <= "\udfff"):
        if is_partial:
            parts.append("⟨" + " ".join(f"{ord(character) - 0xDC00:02X}" for character in run) + "⟩")
        else:
            parts += [_visible_character(character, number == 0) for number, character in enumerate(run)]
    return "".join(parts)


def _visible_character(character: str, is_first: bool) -> str:
    if character in _WHITESPACE:
        return _WHITESPACE[character]
    category = unicodedata.category(character)
    if category[0] in "CZ":
        return f"⟨U+{ord(character):04X}⟩"
    # A combining mark that begins a token would land on the bar before it.
    return "◌" + character if category[0] == "M" and is_first else character


class AlignmentRows:
    """The two rows, for rich."""

    def __init__(self, view: AlignmentView) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view = self._view
        for label, side in (("student", view.student), ("teacher", view.teacher)):
            yield Text(f"{label:<{_LABEL_WIDTH}}{side.name}, {len(side.tokens)} tokens", style="bold")
        yield Text(view.summary)
        yield Text(f"{SHARED} boundary of both   {OWN} of one side only", style="dim")
        for student, teacher in self._lines(options.max_width - _LABEL_WIDTH):
            yield Text("")
            for label, row in (("student", student), ("teacher", teacher)):
                labelled = Text(no_wrap=True).append(f"{label:<{_LABEL_WIDTH}}", style="bold")
                yield labelled.append_text(row)

    def _lines(self, width: int) -> Iterator[tuple[Text, Text]]:
        """As many segments as fit, line by line; a segment wider than a line is cut between characters."""
        rows = (Text(no_wrap=True), Text(no_wrap=True))
        for number, segment in enumerate(self._view.segments):
            cells = self._cells(number, segment)
            if rows[0].cell_len and rows[0].cell_len + cells[0].cell_len + len(SHARED) > width:
                yield self._closed(rows)
                rows = (Text(no_wrap=True), Text(no_wrap=True))
            for row, cell in zip(rows, cells, strict=True):
                row.append_text(cell)
            while rows[0].cell_len + len(SHARED) > width:
                lines = tuple(_cut(row, max(width, 2)) for row in rows)
                yield lines[0][0], lines[1][0]
                rows = (lines[0][1], lines[1][1])
        yield self._closed(rows)

    def _closed(self, rows: tuple[Text, Text]) -> tuple[Text, Text]:
        student, teacher = (row + Text(SHARED, style="bold") for row in rows)
        return student, teacher

    def _cells(self, number: int, segment: Segment) -> tuple[Text, Text]:
        """A segment's tokens on both sides, padded to one width."""
        colour = _COLOURS[number % len(_COLOURS)]
        view = self._view
        texts = [
            OWN.join(side.tokens[index].shown for index in indices)
            for side, indices in ((view.student, segment.student), (view.teacher, segment.teacher))
        ]
        width = max(map(cell_len, texts))
        student, teacher = (
            Text().append(SHARED, "bold").append(text + " " * (width - cell_len(text)), colour) for text in texts
        )
        return student, teacher


def _cut(row: Text, width: int) -> tuple[Text, Text]:
    """``row`` in two: what fits into ``width`` cells, padded to them, and the rest."""
    fits, used = 0, 0
    for character in row.plain:
        if used + cell_len(character) > width:
            break
        used += cell_len(character)
        fits += 1
    head, rest = row[:fits], row[fits:]
    head.append(" " * (width - used))
    return head, rest


def _token_html(token: TokenView) -> str:
    title = f"{token.token}  id {token.id}  bytes {token.span[0]}-{token.span[1]}"
    kind = ' class="nothing"' if not token.covered else ""
    return f'<bdi{kind} title="{escape(title)}">{escape(token.shown)}</bdi>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Alignment of {student} and {teacher}</title>
<style>
:root {{
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --faint: #5b6470; --bar: #1b1f24;
  --hue0: #d7ecf5; --hue1: #f7ebc6; --hue2: #f3dcef; --hue3: #dcefdc;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --page: #14171b; --ink: #eceff3; --faint: #a3adb8; --bar: #eceff3;
    --hue0: #12394a; --hue1: #45390d; --hue2: #45203e; --hue3: #1c3f1e;
  }}
}}
body {{
  margin: 2rem auto; max-width: 72rem; padding: 0 1.5rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif;
}}
h1 {{ font-size: 1.4rem; margin: 0 0 .25rem; }}
p {{ margin: .25rem 0; color: var(--faint); }}
.key {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 1rem 0; }}
.key dd {{ margin: 0; }}
.key dt {{ font-weight: 600; }}
.text {{
  display: flex; flex-wrap: wrap; row-gap: 1.1rem; margin: 1.5rem 0;
  font: 1.15rem/1.9 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
}}
.segment {{ border-left: 3px solid var(--bar); max-width: 100%; overflow-x: auto; }}
.segment:last-child {{ border-right: 3px solid var(--bar); }}
.segment > div {{ display: flex; }}
.segment > div + div {{ border-top: 1px solid var(--page); }}
.segment bdi {{ flex: 1 0 auto; padding: 0 .3em; text-align: center; white-space: pre; }}
.segment bdi + bdi {{ border-left: 1px dashed var(--faint); }}
.segment .nothing {{ color: var(--faint); }}
.hue0 {{ background: var(--hue0); }} .hue1 {{ background: var(--hue1); }}
.hue2 {{ background: var(--hue2); }} .hue3 {{ background: var(--hue3); }}
@media print {{ .segment {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }} }}
</style>
</head>
<body>
<h1>Where two tokenizers agree</h1>
<p>{summary}.</p>
<dl class="key">
<dt>upper row</dt><dd>student: {student}, {num_student} tokens</dd>
<dt>lower row</dt><dd>teacher: {teacher}, {num_teacher} tokens</dd>
</dl>
<div class="text">
{segments}
</div>
<p>A solid bar is a boundary both tokenizers share, a dashed line one that only one of them has.
<bdi>·</bdi> is a space, <bdi>↵</bdi> a line feed, <bdi>⇥</bdi> a tab, <bdi>⟨F0 9F⟩</bdi> part of a character,
<bdi>∅</bdi> a token that covers no bytes.</p>
</body>
</html>
"""
