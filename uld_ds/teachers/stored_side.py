"""The teacher's side of examples read from a spectrum store: token boundaries without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from uld_ds.conversations import Part
from uld_ds.data.encoding import EncodedSide, encoded_turns
from uld_ds.data.examples import Example
from uld_ds.data.pieces import text_of_size
from uld_ds.data.placeholders import Place
from uld_ds.data.rendering import Rendered, RenderedTurn
from uld_ds.teachers.store.reader import Layout, PieceLayout, SpectrumStore

# Stand-ins, of one byte each, for a prompt that is not there and for what spells no text: markers, and ends of turns.
_PROMPT, _MARKER = "\0", "\0"


@dataclass(frozen=True)
class _StoredText(Rendered):
    """Text of the answers alone, with the bytes that every token covers."""

    spans: np.ndarray = field(kw_only=True)
    """[n, 2] bytes of the whole text: the prompt's, the store's in its order, one for what the store has not."""
    usable: int = field(kw_only=True)
    """Number of the first spans whose tokens the store has, the prompt's included."""


@dataclass(frozen=True)
class _StoredTokens(EncodedSide):
    usable: int = field(kw_only=True)


class StoredSide:
    """A side of the data whose token boundaries come from a spectrum store.

    Token i of an example in the store is at place i + 1 here, after one that stands for the prompt.

    Args:
        store: Spectrum store of the same examples.
    """

    shows_all_answers = True

    def __init__(self, store: SpectrumStore) -> None:
        # How many top-k tokens are there has no say in how examples are paired.
        self.tokenizer_digest: str = store.manifest.tokenizer_digest
        self._identity = store.manifest.identity.model_dump(mode="json", exclude={"top_ids"})
        self._layouts = {
            layout.digest: replace(layout, spans=layout.spans.astype(np.int32)) for layout in store.layouts()
        }

        # A tokenizer may have no end of text, and then no answer has an end.
        self._has_ends = any(layout.turns[-1, 1] > 0 for layout in self._layouts.values())

    def identity(self) -> dict[str, Any]:
        """Return the store's identity as plain values."""
        return {"store": self._identity}

    def render(self, example: Example) -> Rendered:
        """Render an example's answers as the teacher's template showed them.

        Raises:
            ValueError: the store does not hold the example, or holds other answers for it.
        """
        layout = self._layouts.get(example.digest())
        if layout is None:
            raise ValueError("it is not in the spectrum store (its data_digest differs): build a store of this data")
        return _as_text(example.parts, layout, has_ends=self._has_ends)

    def encode(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        """Return the token boundaries of rendered examples, from the store."""
        return [_encoded(item) for item in rendered]

    def max_tokens(self, encoded: EncodedSide) -> int:
        """Return how many of an example's tokens the store has."""
        assert isinstance(encoded, _StoredTokens)
        return encoded.usable


def _as_text(parts: tuple[Part, ...], layout: Layout, *, has_ends: bool) -> _StoredText:
    pieces = layout.pieces or PieceLayout(tuple(range(len(layout.turns))), ("",) * len(layout.turns), ())
    leaves: dict[int, list[tuple[int, int, int]]] = {}
    for piece, *leaf in pieces.leaves:
        leaves.setdefault(piece, []).append((leaf[0], leaf[1], leaf[2]))
    text = _PROMPT
    turns: list[RenderedTurn] = []
    places: list[Place] = []
    of_tokens = [np.array([[0, 1]])]
    lead, begin, taken = len(text), len(_PROMPT.encode()), 0

    def close(end: int) -> None:
        if places:
            turns.append(RenderedTurn(lead, tuple(places), end))
            places.clear()

    for number, (part, (spelling, ending, size)) in enumerate(zip(pieces.parts, layout.turns.tolist(), strict=True)):
        if part < 0 or (places and parts[part].turn != parts[places[0].part].turn):
            close(len(text))
            lead = len(text)
        shown = "" if part < 0 else pieces.texts[number] or _known_text(parts, part, size)
        if part >= 0:
            inside = leaves.get(number, [(part, 0, len(shown))])
            places += [Place(own, len(text) + start, len(text) + stop) for own, start, stop in inside]
        text += shown + (_MARKER if ending else "")
        of_tokens += [begin + layout.spans[taken : taken + spelling], _marker_spans(begin + size, ending)]
        taken += spelling
        begin += size + (len(_MARKER) if ending else 0)
    usable = sum(map(len, of_tokens))
    stop = max(int(spans[-1, 1]) for spans in of_tokens if len(spans))
    is_cut = has_ends and layout.turns[-1, 1] == 0
    if is_cut and places and stop == begin:  # cut where a marker follows that the store has not
        text += _MARKER
        begin += len(_MARKER)
    close(len(text))
    if stop < begin:  # an answer that was cut
        of_tokens.append(np.array([[stop, begin]]))
    spans = np.concatenate(of_tokens).astype(np.int32)
    return _StoredText(text, tuple(turns), parts, is_cut=is_cut, spans=spans, usable=usable)


def _known_text(parts: tuple[Part, ...], part: int, size: int) -> str:
    text = text_of_size(parts[part], size) if part < len(parts) else None
    if text is None:
        raise ValueError("the spectrum store holds answers of another length for it")
    return text


def _marker_spans(begin: int, tokens: int) -> np.ndarray:
    # Of several tokens that spell no text, the last one has the stand-in's byte.
    spans = np.full((tokens, 2), begin)
    spans[-1:, 1] += len(_MARKER)
    return spans


def _encoded(rendered: Rendered) -> EncodedSide:
    assert isinstance(rendered, _StoredText)
    ids = np.zeros(len(rendered.spans), np.int32)
    return _StoredTokens(ids, tuple(encoded_turns(rendered, rendered.spans)), usable=rendered.usable)
