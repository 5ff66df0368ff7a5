"""Pieces of answers: their parts, with all those of a tool call as one, so that its tokens keep their boundaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from uld_ds.conversations import Part
from uld_ds.data.placeholders import Place
from uld_ds.data.rendering import Rendered, RenderedTurn

Leaf = tuple[int, int, int]
"""Number of a part, and its first and last character within its piece."""


@dataclass(frozen=True)
class JoinedCalls:
    """A rendered conversation in which each tool call is one part."""

    rendered: Rendered
    leaves: Mapping[int, list[Leaf]]
    """The parts of each tool call, by the number of its first part."""

    def texts(self) -> dict[int, str]:
        """Return the text of each piece, by the number of its part."""
        text = self.rendered.text
        return {place.part: text[place.start : place.stop] for turn in self.rendered.turns for place in turn.parts}


def joined_calls(rendered: Rendered) -> JoinedCalls:
    """Make one piece of the parts of each tool call, from the first one that is shown to the last."""
    leaves: dict[int, list[Leaf]] = {}
    turns: list[RenderedTurn] = []
    for turn in rendered.turns:
        pieces: list[Place] = []
        call: tuple[int, int | None] | None = None
        for place in turn.parts:
            part = rendered.parts[place.part]
            own = None if part.call is None else (part.turn, part.call)
            if own is not None and own == call:
                pieces[-1] = replace(pieces[-1], stop=place.stop)
            else:
                pieces.append(place)
            if own is not None:
                begin = pieces[-1].start
                leaves.setdefault(pieces[-1].part, []).append((place.part, place.start - begin, place.stop - begin))
            call = own
        turns.append(replace(turn, parts=tuple(pieces)))
    return JoinedCalls(replace(rendered, turns=tuple(turns)), leaves)


def text_of_size(part: Part, size: int) -> str | None:
    """Return the likeliest form of a part that has so many bytes; None if it has none.

    Args:
        part: The part.
        size: Bytes of the text that a template makes of it.
    """
    return next((form for form in part.forms if len(form.encode()) == size), None)
