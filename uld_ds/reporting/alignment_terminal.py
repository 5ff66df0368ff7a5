"""An alignment in a terminal: two rows of tokens that wrap together, shared boundaries one above the other."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import rich.cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.text import Text

if TYPE_CHECKING:
    from uld_ds.alignment.segments import Segment
    from uld_ds.reporting.alignment_view import AlignmentView

SHARED, OWN = "┃", "┆"
SIGNS = f"{SHARED} boundary of both   {OWN} of one side only"
_COLORS = ("cyan", "yellow", "magenta", "green")
LABEL_WIDTH = len("student ")


class AlignmentRows:
    """The rows of student and teacher, for rich to print.

    Args:
        view: the alignment.
    """

    def __init__(self, view: AlignmentView) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view = self._view
        for label, side in (("student", view.student), ("teacher", view.teacher)):
            yield Text(f"{label:<{LABEL_WIDTH}}{side.name}, {len(side.tokens)} tokens", style="bold")
        yield from map(Text, view.summary)
        yield Text(SIGNS, style="dim")
        yield Text("")
        yield TokenLines(view)


class TokenLines:
    """The tokens of both sides alone, for rich to print: lines of student and teacher with a blank one between.

    Args:
        view: the alignment.
        styles: styles of the segments, in turn.
    """

    def __init__(self, view: AlignmentView, styles: Sequence[str] = _COLORS) -> None:
        self._view = view
        self._styles = styles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, rows in enumerate(self._lines(options.max_width - LABEL_WIDTH)):
            if number:
                yield Text("")
            for label, row in zip(("student", "teacher"), rows, strict=True):
                yield Text(f"{label:<{LABEL_WIDTH}}", style="bold", end="")
                yield from _placed(row) if console.is_terminal else [row]

    def _lines(self, width: int) -> Iterator[tuple[Text, Text]]:
        """Yield lines of as many segments as fit, in both rows; a wider segment is cut between characters."""
        rows = (Text(no_wrap=True), Text(no_wrap=True))
        for number, segment in enumerate(self._view.segments):
            cells = self._cells(number, segment)
            if rows[0] and cell_len(rows[0].plain + cells[0].plain + SHARED) > width:
                yield self._closed(rows)
                rows = (Text(no_wrap=True), Text(no_wrap=True))
            for row, cell in zip(rows, cells, strict=True):
                row.append_text(cell)
            while cell_len(rows[0].plain + SHARED) > width:
                lines = tuple(_cut(row, max(width, 2)) for row in rows)
                yield lines[0][0], lines[1][0]
                rows = (lines[0][1], lines[1][1])
        yield self._closed(rows)

    def _closed(self, rows: tuple[Text, Text]) -> tuple[Text, Text]:
        student, teacher = (row.append(SHARED, "bold") for row in rows)
        return student, teacher

    def _cells(self, number: int, segment: Segment) -> tuple[Text, Text]:
        """Write a segment's tokens on both sides, padded to one width."""
        style = self._styles[number % len(self._styles)]
        view = self._view
        texts = [
            OWN.join(side.tokens[index].shown for index in indices)
            for side, indices in ((view.student, segment.student), (view.teacher, segment.teacher))
        ]
        width = max(map(cell_len, texts))
        student, teacher = (
            Text().append(SHARED, "bold").append(text + " " * (width - cell_len(text)), style) for text in texts
        )
        return student, teacher


def cell_len(text: str) -> int:
    """Count the most cells that a terminal may give a text.

    Spacing vowel signs (Devanagari and its relatives) and skin tones have a cell of their own in some terminals
    and none in others.
    """
    return sum(map(_cells_of, text))


@cache
def _cells_of(character: str) -> int:
    if "\U0001f3fb" <= character <= "\U0001f3ff":
        return 2
    return max(rich.cells.cell_len(character), int(unicodedata.category(character) == "Mc"))


def _placed(row: Text) -> RenderResult:
    """Yield a row with every shared boundary in its column, however wide the terminal takes what is between."""
    bars = [index for index, character in enumerate(row.plain) if character == SHARED]
    edges = sorted({0, *bars, len(row)})
    column = LABEL_WIDTH
    for start, stop in pairwise(edges):
        piece = row[start:stop]
        piece.end = ""
        yield Control.move_to_column(column)
        yield piece
        column += cell_len(piece.plain)
    yield Text("")


def _cut(row: Text, width: int) -> tuple[Text, Text]:
    """Cut a row in two: what fits into ``width`` cells, padded to them, and the rest."""
    fits, used = 0, 0
    for character in row.plain:
        if used + cell_len(character) > width:
            break
        used += cell_len(character)
        fits += 1
    head, rest = row[:fits], row[fits:]
    head.append(" " * (width - used))
    return head, rest
