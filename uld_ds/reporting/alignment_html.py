"""An alignment as one HTML page: no scripts, nothing loaded, light and dark, on paper too."""

from __future__ import annotations

import unicodedata
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uld_ds.alignment.segments import Segment
    from uld_ds.reporting.alignment_view import AlignmentView, SideView, TokenView

_NUM_HUES = 4


def alignment_page(view: AlignmentView) -> str:
    """The page, as a string to be written in UTF-8."""
    return _PAGE.format(
        student=escape(view.student.name),
        teacher=escape(view.teacher.name),
        num_student=_tokens(view.student),
        num_teacher=_tokens(view.teacher),
        figures="\n".join(_figure(*figure) for figure in _figures(view)),
        warning=f'<p class="warning">{escape(view.warning.capitalize())}.</p>' if view.warning else "",
        colours=COLOURS,
        rows=ROWS,
        key=KEY,
        text=alignment_text(view),
    )


def alignment_text(view: AlignmentView) -> str:
    """The two rows of tokens, for a page that has the styles COLOURS and ROWS."""
    segments = "\n".join(_segment(view, number, segment) for number, segment in enumerate(view.segments))
    return f'<div class="text" dir="{_direction(view.text)}">\n{segments}\n</div>'


def _tokens(side: SideView) -> str:
    return "1 token" if len(side.tokens) == 1 else f"{len(side.tokens):,} tokens"


def _figures(view: AlignmentView) -> list[tuple[str, str]]:
    student, teacher = view.tokens_per_segment
    return [
        (f"{view.alignment_rate:.0%}", "of the student's tokens begin a segment"),
        (f"{len(view.segments):,}", "segment" if len(view.segments) == 1 else "segments"),
        (f"{student:.2f}", "student tokens per segment"),
        (f"{teacher:.2f}", "teacher tokens per segment"),
    ]


def _figure(value: str, meaning: str) -> str:
    return f"<li><b>{escape(value)}</b> {escape(meaning)}</li>"


def _direction(text: str) -> str:
    """Where lines begin: by the text's first letter that has a direction, as Unicode has it for paragraphs."""
    directions = (unicodedata.bidirectional(character) for character in text)
    first = next((direction for direction in directions if direction in ("L", "R", "AL")), "L")
    return "ltr" if first == "L" else "rtl"


def _segment(view: AlignmentView, number: int, segment: Segment) -> str:
    student, teacher = (
        "".join(_token(side.tokens[index]) for index in indices)
        for side, indices in ((view.student, segment.student), (view.teacher, segment.teacher))
    )
    return f'<div class="segment hue{number % _NUM_HUES}"><div>{student}</div><div>{teacher}</div></div>'


def _token(token: TokenView) -> str:
    title = f"{token.token}  id {token.id}  bytes {token.span[0]}-{token.span[1]}"
    kind = ' class="nothing"' if not token.covered else ""
    return f'<bdi{kind} title="{escape(title)}">{escape(token.shown)}</bdi>'


COLOURS = """:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --faint: #5b6470; --bar: #1b1f24; --line: #d5dae0; --alarm: #a33a00;
  --hue0: #d3eaf5; --hue1: #f8eabf; --hue2: #f4dbf0; --hue3: #d9f0da;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --ink: #eceff3; --faint: #a3adb8; --bar: #eceff3; --line: #343b44; --alarm: #ffb37f;
    --hue0: #12394a; --hue1: #45390d; --hue2: #45203e; --hue3: #1c3f1e;
  }
}"""

ROWS = """.text {
  display: flex; flex-wrap: wrap; row-gap: 1rem; margin: 1.25rem 0; padding: 1.25rem 0;
  border: solid var(--line); border-width: 1px 0;
  font: 1.2rem/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono", monospace;
}
.segment { border-inline-start: 3px solid var(--bar); max-width: 100%; }
.segment:last-child { border-inline-end: 3px solid var(--bar); }
.segment > div { display: flex; flex-wrap: wrap; }
.segment > div + div { border-top: 1px solid var(--page); }
.segment bdi { flex: 1 0 auto; max-width: 100%; padding: 0 .3em; text-align: center; white-space: pre-wrap;
  overflow-wrap: anywhere; }
/* Not border-inline-start: each token has a direction of its own. */
[dir=ltr] bdi + bdi { border-left: 1px dashed var(--faint); }
[dir=rtl] bdi + bdi { border-right: 1px dashed var(--faint); }
.segment .nothing { color: var(--faint); }
.hue0 { background: var(--hue0); } .hue1 { background: var(--hue1); }
.hue2 { background: var(--hue2); } .hue3 { background: var(--hue3); }"""

KEY = """<p class="key">A solid bar is a boundary both tokenizers share: a segment begins there. A dashed line is a
boundary of one side only. <kbd>·</kbd> is a space,
<kbd>↵</kbd> a line feed, <kbd>⇥</kbd> a tab, <kbd>⟨F0 9F⟩</kbd> part of
a character, <kbd>∅</kbd> a token that covers no bytes.</p>"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Alignment of {student} and {teacher}</title>
<style>
{colours}
* {{ box-sizing: border-box; }}
body {{
  margin: 2rem auto; max-width: 76rem; padding: 0 1.5rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0 0 1rem; }}
p {{ margin: .5rem 0; }}
.figures {{ display: flex; flex-wrap: wrap; gap: .5rem 2.25rem; margin: 0 0 1rem; padding: 0; list-style: none; }}
.figures li {{ color: var(--faint); }}
.figures b {{ color: var(--ink); font-size: 1.6rem; font-variant-numeric: tabular-nums; }}
.warning {{ color: var(--alarm); }}
.sides {{ display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 0; }}
.sides dt {{ font-weight: 600; }}
.sides dd {{ margin: 0; overflow-wrap: anywhere; }}
.sides span, .key {{ color: var(--faint); }}
{rows}
.key {{ font-size: .9rem; }}
.key kbd {{ font: inherit; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  color: var(--ink); }}
@media print {{
  body {{ margin: 0; max-width: none; }}
  .segment {{ break-inside: avoid; print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
}}
</style>
</head>
<body>
<h1>Where two tokenizers agree</h1>
<ul class="figures">
{figures}
</ul>
{warning}
<dl class="sides">
<dt>upper row</dt><dd>student: {student} <span>({num_student})</span></dd>
<dt>lower row</dt><dd>teacher: {teacher} <span>({num_teacher})</span></dd>
</dl>
{text}
{key}
</body>
</html>
"""
