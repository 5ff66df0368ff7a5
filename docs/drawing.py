"""SVG for the documentation's pictures: readable on white and on black, on a screen and on paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """text{font:14px ui-monospace,monospace;fill:#24292f}.small{font-size:12px}.axis{stroke:#8c959f;fill:none}
.grid{stroke:#8c959f;stroke-opacity:.25;fill:none}.line{fill:none;stroke-width:2.2}
.box0{fill:#9ec9f5}.box1{fill:#f5d58b}.box{stroke:#57606a}.box text,.box0+text{fill:#24292f}
.blue{stroke:#0969da}.ochre{stroke:#8c6d1f}.orange{stroke:#bc4c00}
.blue.dot{fill:#0969da}.ochre.dot{fill:#8c6d1f}.orange.dot{fill:#bc4c00}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.blue{stroke:#58a6ff}.ochre{stroke:#d9b44a}.orange{stroke:#ff8e4d}
.blue.dot{fill:#58a6ff}.ochre.dot{fill:#d9b44a}.orange.dot{fill:#ff8e4d}text.token{fill:#1b1f24}}"""
# Told apart without color, too.
DASHES = {"blue": "", "ochre": "2 4", "orange": "8 4"}


def svg(width: int, height: int, title: str, parts: Sequence[str], style: str = "") -> str:
    """A picture of its own; ``style`` is what it adds to the common style."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" width="{width}">'
    return f"{head}<title>{escape(title)}</title><style>{STYLE}{style}</style>{''.join(parts)}</svg>\n"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def path(points: Sequence[tuple[float, float]], kind: str, *, dashed: bool = True) -> str:
    """A line through points; one with a color has that color's dashes, unless it is too short for them."""
    dashes = [DASHES[word] for word in kind.split() if DASHES.get(word)] if dashed else []
    dash = f' stroke-dasharray="{dashes[0]}"' if dashes else ""
    return f'<path class="{kind}"{dash} d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def dot(x: float, y: float, kind: str, radius: float = 3.5) -> str:
    """A filled circle."""
    return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'
