"""The picture of an alignment: what it says, and that all of it can be seen."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.alignment.segments import Segment
from uld_ds.reporting.alignment_html import alignment_page
from uld_ds.reporting.alignment_terminal import OWN, SHARED, AlignmentRows
from uld_ds.reporting.alignment_terminal import cell_len as terminal_cells
from uld_ds.reporting.alignment_view import AlignmentView, SideView, TokenView, view_alignment, visible

VOID = {"meta", "br"}


def view_of(text: str, student: str = "characters", teacher: str = "plain_bytes") -> AlignmentView:
    return view_alignment(zoo.ALL[student](), zoo.ALL[teacher](), text, student_name="small", teacher_name="<large>")


def rendered(view: AlignmentView, width: int, **options: Any) -> list[str]:
    console = Console(width=width, file=StringIO(), **options)
    console.print(AlignmentRows(view))
    return console.file.getvalue().splitlines()


def rows_of(lines: list[str]) -> list[tuple[str, str]]:
    """The pairs of rows below the heading, without their labels."""
    first = lines.index("")
    rows = [line for line in lines[first:] if line]
    assert [row[:8] for row in rows] == ["student ", "teacher "] * (len(rows) // 2)
    return [(upper[8:], lower[8:]) for upper, lower in zip(rows[::2], rows[1::2], strict=True)]


# --- what is shown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"a b", "a·b"),
        (b" \n\t\r", "·↵⇥␍"),
        (b"", "∅"),
        (b"\xf0\x9f", "⟨F0 9F⟩"),
        (b" \xe4\xb8", "·⟨E4 B8⟩"),
        (b"\xa9x", "⟨A9⟩x"),
        ("\u200d".encode(), "⟨U+200D⟩"),
        (b"\x00", "⟨U+0000⟩"),
        ("\u00a0".encode(), "⟨U+00A0⟩"),
        ("\u0301".encode(), "◌\u0301"),
        ("e\u0301".encode(), "e\u0301"),
        (" \u0301".encode(), "·◌\u0301"),
        ("1\ufe0f\u20e3".encode(), "1⟨U+FE0F⟩◌\u20e3"),
        ("中文".encode(), "中文"),
        ("❤\ufe0f".encode(), "❤⟨U+FE0F⟩"),
        ("\u3164".encode(), "⟨U+3164⟩"),
        ("👋🏽".encode(), "👋🏽"),
    ],
)
def test_everything_invisible_is_shown(data: bytes, shown: str) -> None:
    assert visible(data) == shown


def test_the_view_of_a_text() -> None:
    view = view_of("aé\n")
    assert [token.span for token in view.student.tokens] == [(0, 1), (1, 3), (3, 4)]
    assert [token.covered for token in view.teacher.tokens] == [b"a", b"\xc3", b"\xa9", b"\n"]
    assert [token.token for token in view.teacher.tokens] == ["a", "Ã", "©", "Ċ"]
    assert [token.id for token in view.student.tokens] == [98, 0, 11]
    assert view.segments == [
        Segment(range(0, 1), range(0, 1)),
        Segment(range(1, 2), range(1, 3)),
        Segment(range(2, 3), range(3, 4)),
    ]
    assert view.alignment_rate == 1.0
    assert view.tokens_per_segment == (1.0, 4 / 3)


def test_the_student_is_the_one_whose_tokens_count() -> None:
    view = view_of("aé\n", student="plain_bytes", teacher="characters")
    assert view.alignment_rate == 3 / 4
    assert view.summary == (
        "3 segments; 75% of the student's tokens begin one",
        "tokens per segment: student 1.33, teacher 1.00",
    )
    assert view.warning is None
    assert view_of("a", "characters", "characters").summary[0].startswith("1 segment; ")


def test_few_boundaries_in_common_are_worth_a_warning() -> None:
    assert view_of("éa", "plain_bytes", "characters").warning is None  # two of three
    assert view_of("éé", "plain_bytes", "characters").warning is None  # two of four: not fewer than half
    view = view_of("中", "plain_bytes", "characters")
    assert view.warning is not None
    assert view.warning.startswith("only 33% of the student's tokens begin a segment, ")
    assert f'<p class="warning">{view.warning.capitalize()}'.replace("'", "&#39;") in alignment_page(view)
    assert 'class="warning"' not in alignment_page(view_of("aé"))


def test_json() -> None:
    record = view_of("aé").to_json()
    assert json.loads(json.dumps(record)) == record
    assert record == {
        "text": "aé",
        "num_bytes": 3,
        "student": {
            "name": "small",
            "ids": [98, 0],
            "tokens": ["a", "[UNK]"],
            "bytes": ["61", "c3a9"],
            "spans": [[0, 1], [1, 3]],
        },
        "teacher": {
            "name": "<large>",
            "ids": record["teacher"]["ids"],
            "tokens": ["a", "Ã", "©"],
            "bytes": ["61", "c3", "a9"],
            "spans": [[0, 1], [1, 2], [2, 3]],
        },
        "segments": [
            {"student": [0, 1], "teacher": [0, 1], "bytes": [0, 1]},
            {"student": [1, 2], "teacher": [1, 3], "bytes": [1, 3]},
        ],
        "alignment_rate": 1.0,
        "tokens_per_segment": {"student": 1.0, "teacher": 1.5},
    }


def test_a_tokenizer_without_a_name_is_called_by_its_kind() -> None:
    tokenizer = zoo.characters()
    assert view_alignment(tokenizer, tokenizer, "a").student.name == type(tokenizer).__name__


def test_nothing_to_align_is_an_error() -> None:
    with pytest.raises(ValueError, match="text is empty"):
        view_of("")
    with pytest.raises(ValueError, match="tokenizer <large> makes no tokens"):
        view_of("  ", teacher="word_level")


# --- in a terminal ------------------------------------------------------------------------------------------------


def test_shared_boundaries_are_lined_up() -> None:
    lines = rendered(view_of("aé\n"), 80)
    assert lines[:2] == ["student small, 3 tokens", "teacher <large>, 4 tokens"]
    assert rows_of(lines) == [("┃a┃é        ┃↵┃", "┃a┃⟨C3⟩┆⟨A9⟩┃↵┃")]


@pytest.mark.parametrize("width", [20, 33, 79])
def test_rows_wrap_together(width: int) -> None:
    text = "def f(x):\n\treturn 'größer als 中文' " * 5
    view = view_of(text, student="plain_bytes", teacher="characters")
    rows = rows_of(rendered(view, width))
    assert len(rows) > 1
    for upper, lower in rows:
        assert cell_len(upper) <= width - 8
        # Where one row has a heavy bar, so has the other, in the same cell.
        cells = [[cell_len(row[: hit.start()]) for hit in re.finditer(SHARED, row)] for row in (upper, lower)]
        assert cells[0] == cells[1]
    upper, lower = ("".join(row).replace(" ", "") for row in zip(*rows, strict=True))
    for row, side in ((upper, view.student), (lower, view.teacher)):
        shown = re.sub(f"[{SHARED}{OWN}]", "", row)
        assert shown == "".join(token.shown for token in side.tokens).replace(" ", "")


def test_a_segment_wider_than_the_terminal_is_cut() -> None:
    tokens = [TokenView(0, "a", (n, n + 1), b"a") for n in range(40)]
    whole = [TokenView(1, "a" * 40, (0, 40), b"a" * 40)]
    view = AlignmentView("a" * 40, SideView("s", tokens), SideView("t", whole), [Segment(range(40), range(1))])
    rows = rows_of(rendered(view, 30))
    assert all(cell_len(upper) <= 22 and cell_len(lower) <= 22 for upper, lower in rows)
    assert "".join(upper for upper, _ in rows) == SHARED + OWN.join("a" * 40) + SHARED
    assert "".join(lower for _, lower in rows).replace(" ", "") == SHARED + "a" * 40 + SHARED


def test_a_wide_character_is_never_cut() -> None:
    tokens = [TokenView(0, "中", (n, n + 3), "中".encode()) for n in range(0, 60, 3)]
    whole = [TokenView(1, "all", (0, 60), b"".join(token.covered for token in tokens))]
    view = AlignmentView("中" * 20, SideView("s", tokens), SideView("t", whole), [Segment(range(20), range(1))])
    rows = rows_of(rendered(view, 8 + 16))
    assert all(cell_len(upper) == cell_len(lower) == 16 for upper, lower in rows[:-1])
    assert "".join(lower for _, lower in rows).replace(" ", "") == SHARED + "中" * 20 + SHARED


def test_on_a_terminal_shared_boundaries_are_put_into_their_columns() -> None:
    """Whatever the terminal's idea of a skin tone or a vowel sign: bars are placed, not merely reached."""
    view = view_of("a 👋🏽 नि b", student="characters", teacher="plain_bytes")
    lines = rendered(view, 80, force_terminal=True, color_system=None)
    columns = [[int(n) for n in re.findall(r"\x1b\[(\d+)G┃", line)] for line in lines if "┃" in line]
    upper, lower = columns[1:3]
    assert upper == lower
    assert upper[:3] == [9, 11, 13]  # counted from 1: after the label, "a" and "·"
    cells = dict(zip(upper, pairwise(upper), strict=False))
    assert cells[13][1] - cells[13][0] == 1 + cell_len("⟨F0⟩┆⟨9F⟩┆⟨91⟩┆⟨8B⟩")
    assert "\x1b[" not in "".join(rendered(view, 80))


def test_the_widest_that_a_terminal_may_take_it() -> None:
    assert [terminal_cells(text) for text in ("ab", "中", "👋", "👋🏽", "e\u0301", "नि", "😀é")] == [
        2,
        2,
        2,
        4,
        1,
        2,
        3,
    ]


def test_color_is_a_help_not_a_need(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of("aé\n")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = "\n".join(rendered(view, 80, force_terminal=True, color_system="standard"))
    assert {"\x1b[36m", "\x1b[33m", "\x1b[35m"} <= set(re.findall(r"\x1b\[3\dm", colored))
    monkeypatch.setenv("NO_COLOR", "1")
    plain = "\n".join(rendered(view, 80, force_terminal=True, color_system="standard"))
    assert not re.findall(r"\x1b\[[\d;]*3\dm", plain)
    assert re.sub(r"\x1b\[[\d;]*m", "", plain) == re.sub(r"\x1b\[[\d;]*m", "", colored)


# --- as a page ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What is in the page: that its elements are closed in order, what it loads, and the tokens of each segment."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.segments: list[list[list[str]]] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if "segment" in (named.get("class") or "").split():
            self.segments.append([])
        elif tag == "div" and len(self.open) >= 2 and self.segments and self.open[-1] == "div":
            self.segments[-1].append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.segments and self.open[-2:] == ["div", "bdi"]:
            self.segments[-1][-1].append(data)


def test_the_page_shows_every_token_of_every_segment() -> None:
    page = alignment_page(view_of("a<é\n"))
    assert Page(page).segments == [
        [["a"], ["a"]],
        [["<"], ["<"]],
        [["é"], ["⟨C3⟩", "⟨A9⟩"]],
        [["↵"], ["↵"]],
    ]
    assert "teacher: &lt;large&gt; <span>(5 tokens)</span>" in page
    assert "<large>" not in page
    assert re.findall(r"<li><b>(.*?)</b> (.*?)</li>", page) == [
        ("100%", "of the student&#39;s tokens begin a segment"),
        ("4", "segments"),
        ("1.00", "student tokens per segment"),
        ("1.25", "teacher tokens per segment"),
    ]


def test_tokens_are_text_on_the_page_not_markup() -> None:
    tokens = [TokenView(0, '<b title="x">', (0, 3), b"<b>")]
    page = AlignmentView("<b>", SideView("s", tokens), SideView("t", tokens), [Segment(range(1), range(1))])
    assert alignment_page(page).count("&lt;b&gt;") == 2
    assert "<b " not in alignment_page(page)


def test_the_page_needs_nothing_else() -> None:
    page = alignment_page(view_of("x = '<script>' & \"more\""))
    assert Page(page).links == []
    assert not re.search(r"url\(|@import|<script|https?://", page)
    assert "prefers-color-scheme: dark" in page
    assert '<meta charset="utf-8">' in page


def test_the_page_tells_boundaries_apart_without_color() -> None:
    page = alignment_page(view_of("aé"))
    assert re.search(r"\.segment \{[^}]*border-inline-start: 3px solid", page)
    assert re.search(r"\[dir=ltr\] bdi \+ bdi \{[^}]*border-left: 1px dashed", page)
    assert re.search(r"\[dir=rtl\] bdi \+ bdi \{[^}]*border-right: 1px dashed", page)


def test_the_page_runs_as_its_text_does() -> None:
    assert '<div class="text" dir="ltr">' in alignment_page(view_of("1. a مرحبا"))
    assert '<div class="text" dir="rtl">' in alignment_page(view_of("1. مرحبا a"))
    assert '<div class="text" dir="rtl">' in alignment_page(view_of("שלום"))
    assert '<div class="text" dir="ltr">' in alignment_page(view_of("123"))


def test_a_token_of_no_width_is_in_the_page() -> None:
    tokens = [TokenView(3, "▁", (0, 0), b""), TokenView(4, "中", (0, 3), "中".encode())]
    view = AlignmentView("中", SideView("s", tokens), SideView("t", tokens[1:]), [Segment(range(2), range(1))])
    assert Page(alignment_page(view)).segments == [[["∅", "中"], ["中"]]]
    assert 'title="▁  id 3  bytes 0-0"' in alignment_page(view)
