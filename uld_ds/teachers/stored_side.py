"""The teacher's side of examples read from a spectrum store: token boundaries without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uld_ds.data.encoding import EncodedSide, EncodedTurn, encoded_turn
from uld_ds.data.rendering import TRIMS, Rendered, RenderedTurn
from uld_ds.data.sources import Example
from uld_ds.teachers.store.reader import SpectrumStore

# Stand-ins, of one byte each, for a prompt that is not there and for what ends a turn.
_PROMPT, _END = "\0", "\0"


@dataclass(frozen=True)
class _StoredText(Rendered):
    """Text of the answers alone, with the bytes that every token covers."""

    spans: np.ndarray
    """[n, 2] bytes of the whole text: the prompt's, the store's in its order, one for what the store has not."""
    usable: int
    """Number of the first spans whose tokens the store has, the prompt's included."""


@dataclass(frozen=True)
class _StoredTokens(EncodedSide):
    usable: int


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
        self._layouts = {digest: (turns, spans.astype(np.int32)) for digest, turns, spans in store.layouts()}

    def identity(self) -> dict[str, Any]:
        """Return the store's identity as plain values."""
        return {"store": self._identity}

    def render(self, example: Example) -> Rendered:
        """Render an example's answers as the teacher's template showed them.

        Raises:
            ValueError: the store does not hold the example, or holds other answers for it.
        """
        if example.digest() not in self._layouts:
            raise ValueError("it is not in the spectrum store (its data_digest differs): build a store of this data")
        turns, spans = self._layouts[example.digest()]
        answers = [example.messages[i]["content"] for i in example.answers][: len(turns)]
        for trim in TRIMS:
            shown = [trim(answer) for answer in answers]
            if [len(answer.encode()) for answer in shown] == turns[:, 2].tolist():
                return _as_text(shown, turns, spans)
        raise ValueError("the spectrum store holds answers of another length for it")

    def encode(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        """Return the token boundaries of rendered examples, from the store."""
        return [_encoded(item) for item in rendered]

    def max_tokens(self, encoded: EncodedSide) -> int:
        """Return how many of an example's tokens the store has."""
        assert isinstance(encoded, _StoredTokens)
        return encoded.usable


def _as_text(shown: list[str], turns: np.ndarray, spans: np.ndarray) -> _StoredText:
    text, places = _PROMPT, []
    of_tokens = [np.array([[0, 1]])]
    begin, taken = len(_PROMPT.encode()), 0
    for answer, (spelling, ending, size) in zip(shown, turns.tolist(), strict=True):
        start = len(text)
        text += answer + (_END if ending else "")
        places.append(RenderedTurn(start, start + len(answer), len(text)))
        own = spans[taken : taken + spelling]
        taken += spelling
        # Of several tokens that end a turn, the last one has its byte.
        ends = np.full((ending, 2), size)
        ends[-1:, 1] += 1
        of_tokens += [begin + own, begin + ends]
        begin += size + (1 if ending else 0)
    usable = sum(map(len, of_tokens))
    stop = int(of_tokens[-2][-1, 1]) if len(of_tokens[-2]) else begin
    if not turns[-1, 1] and stop < begin:
        of_tokens.append(np.array([[stop, begin]]))
    return _StoredText(text, tuple(places), np.concatenate(of_tokens), usable)


def _encoded(rendered: Rendered) -> EncodedSide:
    assert isinstance(rendered, _StoredText)
    turns: list[EncodedTurn] = []
    for turn in rendered.turns:
        turns.append(encoded_turn(rendered.text, turn, rendered.spans, turns[-1].end if turns else 0))
    return _StoredTokens(np.zeros(len(rendered.spans), np.int32), tuple(turns), rendered.usable)
