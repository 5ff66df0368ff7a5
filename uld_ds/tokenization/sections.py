"""A text's stretches between added tokens, each of which a tokenizer normalizes and cuts by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uld_ds.tokenization.normalizer import NormalForms
from uld_ds.tokenization.token_bytes import TokenByteTable

Ints = NDArray[np.int64]
Offsets = Callable[[int], tuple[int, int]]
"""A function from the number of a token to the half-open range of characters that it covers."""


@dataclass(frozen=True)
class Tokens:
    """One text and its tokens."""

    text: str
    """The text."""
    ids: Ints
    """[n] ids of the text's tokens."""
    offsets: Offsets | None
    """The tokenizer's own character ranges; None where there are none."""


@dataclass(frozen=True)
class Section:
    """A stretch between two added tokens: tokens ``[first, stop)`` of a text and its characters ``[start, end)``."""

    first: int
    """Number of the first token."""
    stop: int
    """Number of the token after the last; if there is one, it is an added token."""
    start: int
    """Position of the first character."""
    end: int
    """Position after the last character."""


def find_sections(
    table: TokenByteTable, forms: NormalForms, tokens: Tokens, doubts: bool = False
) -> list[Section] | None:
    """Cut a text into the stretches between added tokens; None if an added token is not where the text has it.

    Added tokens are cut out of a text before anything else happens to it, so the next one among the tokens
    is the next one in the text.

    Args:
        table: the bytes of each token.
        forms: the normal forms of a text's units.
        tokens: the text and its tokens.
        doubts: whether a token that looks like an added one may be a piece of ordinary text, and, if there are no
            offsets to tell, what looks like an added token in the text may be no token.
    """
    sections: list[Section] = []
    first, start = 0, 0
    positions = _literals(table, forms, tokens, doubts)
    places = _literal_places(table, tokens, positions, from_right=doubts and tokens.offsets is None)
    if places is None:
        return None
    for position, found in zip(positions, places, strict=True):
        entry = table.added[int(tokens.ids[position])]
        end = max(start, len(tokens.text[:found].rstrip())) if entry.lstrip else found
        sections.append(Section(first, position, start, end))
        first, start = position + 1, found + len(entry.content)
        if entry.rstrip:
            start = len(tokens.text) - len(tokens.text[start:].lstrip())
    sections.append(Section(first, len(tokens.ids), start, len(tokens.text)))
    return sections


def _literals(table: TokenByteTable, forms: NormalForms, tokens: Tokens, doubts: bool) -> list[int]:
    """List the numbers of the tokens that are in the text as they stand, an unknown token's own name among them."""
    literal = table.literal[tokens.ids]
    checked, twofold = table.unknown[tokens.ids], table.twofold[tokens.ids]
    if tokens.offsets is not None:
        checked = checked | twofold
    elif not doubts:
        # Both of what it may stand for have the same normal form, mostly: it need not be told which it is.
        literal = literal & ~twofold
    if doubts or (tokens.offsets and table.single_word[tokens.ids].any()):
        checked = checked | literal
    for position in np.flatnonzero(checked).tolist():
        entry = table.added.get(int(tokens.ids[position]))
        if tokens.offsets is not None:
            literal[position] = entry is not None and entry.content in tokens.text[slice(*tokens.offsets(position))]
        elif entry is not None:
            # What normalization leaves alone is spelled in any case, whether it was looked for first or not.
            changes = twofold[position] or forms.normal(entry.content) != entry.content.encode()
            literal[position] = literal[position] and changes
    return np.flatnonzero(literal).tolist()


def _literal_places(table: TokenByteTable, tokens: Tokens, positions: list[int], from_right: bool) -> list[int] | None:
    """Find the character at which the text has each added token as it stands; None if it has not.

    Several layouts may fit: the first from the left is taken, or the first from the right.
    """
    text, places = tokens.text, []
    low, high = 0, len(text)
    for position in reversed(positions) if from_right else positions:
        entry = table.added[int(tokens.ids[position])]
        if tokens.offsets is not None and entry.single_word:
            start, end = tokens.offsets(position)
            found = text.find(entry.content, max(low, start), min(high, end))
        else:
            found = _find_entry(table, entry, text, low, high, from_right)
        if found < 0:
            return None
        places.append(found)
        low, high = (low, found) if from_right else (found + len(entry.content), high)
    return places[::-1] if from_right else places


def _find_entry(table: TokenByteTable, entry: Any, text: str, low: int, high: int, from_right: bool) -> int:
    """Find an added token between two characters of ``text``, where it may stand; -1 if there is none."""
    size = len(entry.content)
    find = text.rfind if from_right else text.find
    found = find(entry.content, low, high)
    while found >= 0 and entry.single_word:
        if all(map(table.ends_word, text[max(found - 1, 0) : found] + text[found + size : found + size + 1])):
            break
        low, high = (low, found + size - 1) if from_right else (found + 1, high)
        found = find(entry.content, low, high)
    return found
