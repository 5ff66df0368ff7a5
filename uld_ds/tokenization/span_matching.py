"""Three ways to locate a text's tokens, from the surest to the last resort; each is verified byte by byte.

1. `exact_starts`: the tokens' own bytes, side by side, are the text (byte-level BPE, byte fallback, character
   and byte models; also with the one space that SentencePiece puts before a text).
2. `normal_starts`: they are the text's normal form, with or without whitespace (Unigram with NFKC,
   lower-casing WordPiece, text with words that the tokenizer does not know).
3. `offset_starts`: each token is the normal form of the characters that the tokenizer's offsets name.

Spans tile the text, so what a tokenizer drops belongs to a token all the same: whitespace to the token that
follows (where most tokenizers keep it), anything else to the token before. A token that ends inside a
character which normalization has changed has no boundary there; the token that completes the character
covers it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uld_ds.tokenization.normalizer import NormalForms, offsets_of
from uld_ds.tokenization.token_bytes import TokenByteTable, without_whitespace

Ints = NDArray[np.int64]
Offsets = Callable[[int], tuple[int, int]]
"""A function from the number of a token to the half-open range of characters that it covers."""


@dataclass(frozen=True)
class Reading:
    """A reading of a tokenizer: what its tokens spell, and what it turns a text into first."""

    table: TokenByteTable
    """The bytes that each token spells."""
    forms: NormalForms
    """The normal forms of a text's units."""


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


def exact_starts(table: TokenByteTable, texts: Sequence[bytes], ids: Sequence[Ints]) -> list[Ints | None]:
    """Locate the byte ``[n]`` at which each token begins, in texts that their tokens spell; None for the others.

    Args:
        table: the bytes of each token, valid for all ``ids``.
        texts: UTF-8 bytes of each text.
        ids: ``[n]`` ids of each text's tokens.
    """
    flat = np.concatenate([np.zeros(0, np.int64), *ids])
    start = offsets_of(table.exact_length[flat])
    edges = [0]
    for row in ids:
        edges.append(edges[-1] + len(row))
    byte_edges = start[edges].tolist()
    result: list[Ints | None] = []
    for index, data in enumerate(texts):
        low, high = byte_edges[index : index + 2]
        surplus = high - low - len(data)
        found: Ints | None = None
        # One byte more may be the space that a tokenizer puts before a text.
        if surplus in (0, 1):
            spelled = b"".join(map(table.exact.__getitem__, ids[index].tolist()))
            if spelled[surplus:] == data and spelled[:surplus] in (b"", b" "):
                found = np.maximum(start[edges[index] : edges[index + 1]] - (low + surplus), 0)
        result.append(found)
    return result


def normal_starts(reading: Reading, batch: Sequence[Tokens]) -> list[Ints | int]:
    """Locate the byte ``[n]`` at which each token begins, by the normal form of each text in a batch.

    Where the tokens do not spell a text, its result is the first byte that disagrees.
    """
    return _NormalBatch(reading, batch).starts()


class _NormalBatch:
    """The work of `normal_starts` on several texts laid side by side, so that numpy's fixed cost is paid once."""

    def __init__(self, reading: Reading, batch: Sequence[Tokens]) -> None:
        self._table, self._batch = reading.table, batch
        self._ids = np.concatenate([tokens.ids for tokens in batch])
        self._id_list = self._ids.tolist()
        self._char_base = offsets_of(np.array([len(tokens.text) for tokens in batch])).tolist()
        self._token_base = offsets_of(np.array([len(tokens.ids) for tokens in batch])).tolist()
        self._sections = [find_sections(reading.table, tokens) for tokens in batch]
        breaks = [
            base + edge
            for base, sections in zip(self._char_base, self._sections, strict=False)
            for section in sections or [Section(0, 0, 0, 0)]
            for edge in (section.start, section.end)
        ]
        self._units = reading.forms.read("".join(t.text for t in batch), np.array(breaks, np.int64))
        exact_length, solid_length = self._table.exact_length[self._ids], self._table.solid_length[self._ids]
        self._unknown = np.flatnonzero(self._table.unknown[self._ids])
        self._windows = self._find_windows()
        exact_length[self._unknown] = np.diff(self._units.exact_start[self._windows])[:, 0]
        solid_length[self._unknown] = np.diff(self._units.solid_start[self._windows])[:, 0]
        self._exact_start, self._solid_start = offsets_of(exact_length), offsets_of(solid_length)
        # Per token: its place in the normal form (exact or solid), and the bytes its section lies between.
        num_tokens = len(self._ids)
        self._place = np.zeros(num_tokens, np.int64)
        self._is_solid = np.zeros(num_tokens, bool)
        self._low = np.zeros(num_tokens, np.int64)
        self._high = np.zeros(num_tokens, np.int64)

    def _find_windows(self) -> Ints:
        """Find the units ``[k, 2]`` that each unknown token may stand for: by its offsets, or any of its text."""
        chars = []
        text_of = np.searchsorted(self._token_base, self._unknown, "right") - 1
        for flat, index in zip(self._unknown.tolist(), text_of.tolist(), strict=True):
            tokens, base = self._batch[index], self._char_base[index]
            whole = (0, len(tokens.text))
            low, high = tokens.offsets(flat - self._token_base[index]) if tokens.offsets else whole
            chars.append((base + low, base + high))
        low, high = np.array(chars, np.int64).reshape(-1, 2).T
        of_char = self._units.of_char
        return np.stack([of_char[low], np.where(low < high, of_char[high - 1] + 1, of_char[low])], axis=1)

    def _pieces(self, spelled: list[bytes], form: bytes, form_start: Ints, first: int, stop: int) -> list[bytes]:
        """List what tokens ``[first, stop)`` spell. An unknown one spells what is there: it is no evidence."""
        pieces = list(map(spelled.__getitem__, self._id_list[first:stop]))
        if len(self._unknown):
            chosen = slice(*np.searchsorted(self._unknown, (first, stop)))
            windows = form_start[self._windows[chosen]].tolist()
            for flat, (low, high) in zip(self._unknown[chosen].tolist(), windows, strict=True):
                pieces[flat - first] = form[low:high]
        return pieces

    def _unit_range(self, index: int, section: Section) -> tuple[int, int]:
        base = self._char_base[index]
        return int(self._units.of_char[base + section.start]), int(self._units.of_char[base + section.end])

    def starts(self) -> list[Ints | int]:
        """Locate the tokens of every text: the byte ``[n]`` at which each begins, or the first that disagrees."""
        disagreements = [self._place_text(index) for index in range(len(self._batch))]
        start = self._locate()
        base = self._units.byte_start[self._units.of_char[self._char_base]].tolist()
        result: list[Ints | int] = []
        for index, disagreement in enumerate(disagreements):
            if disagreement is not None:
                result.append(disagreement - base[index])
                continue
            row = start[self._token_base[index] : self._token_base[index + 1]] - base[index]
            row[:1] = 0
            result.append(row)
        return result

    def _place_text(self, index: int) -> int | None:
        """Place one text's tokens; on failure return the byte (of the whole batch) where it disagrees."""
        chars, tokens = self._char_base[index], self._token_base[index]
        sections = self._sections[index]
        if sections is None:
            return int(self._units.byte_start[self._units.of_char[chars]])
        for section in sections:
            units = self._unit_range(index, section)
            failure = self._place_section(tokens + section.first, tokens + section.stop, *units)
            if failure is not None:
                return failure
        return None

    def _place_section(self, first: int, stop: int, first_unit: int, stop_unit: int) -> int | None:
        """Place tokens ``[first, stop)``, and the added token that may follow, among the units given.

        On failure return the byte (of the whole batch) where they disagree.
        """
        units = self._units
        own, text_start = self._exact_start[first : stop + 1], units.exact_start
        low, high = text_start[first_unit], text_start[stop_unit]
        surplus = int(own[-1] - own[0] - (high - low))
        is_solid = surplus not in (0, 1) or not self._spells_exactly(first, stop, units.exact[low:high])
        if is_solid:
            text_start, surplus = units.solid_start, 0
            lengths = self._solid_lengths(first, stop, first_unit, stop_unit)
            if isinstance(lengths, int):
                return lengths
            own = offsets_of(lengths)
        placed = slice(first, stop + 1)  # one more than the section has: the added token, where there is one
        place = np.maximum(own - own[0] - surplus, 0) + text_start[first_unit]
        self._place[placed] = place[: len(self._place) - first]
        self._is_solid[placed] = is_solid
        self._low[placed], self._high[placed] = units.byte_start[first_unit], units.byte_start[stop_unit]
        return None

    def _spells_exactly(self, first: int, stop: int, wanted: bytes) -> bool:
        """Tell whether the tokens spell ``wanted``, perhaps with one space before it."""
        pieces = self._pieces(self._table.exact, self._units.exact, self._units.exact_start, first, stop)
        spelled = b"".join(pieces)
        return spelled == wanted or (len(spelled) == len(wanted) + 1 and spelled == b" " + wanted)

    def _solid_lengths(self, first: int, stop: int, first_unit: int, stop_unit: int) -> Ints | int:
        """Count the bytes that each token spells, whitespace aside; return where they disagree if they do."""
        form, start = self._units.solid, self._units.solid_start
        low, high = int(start[first_unit]), int(start[stop_unit])
        wanted = form[low:high]
        pieces = self._pieces(self._table.solid, form, start, first, stop)
        spelled = b"".join(pieces)
        if spelled == wanted:
            return np.diff(self._solid_start[first : stop + 1])
        chosen = slice(*np.searchsorted(self._unknown, (first, stop)))
        numbers = (self._unknown[chosen] - first).tolist()
        windows = np.clip(start[self._windows[chosen]], low, high) - low
        fills = only_fill(pieces, numbers, windows.tolist(), wanted) if numbers else None
        if fills is None:
            # What an unknown token spells is a guess here: only the tokens before the first one count.
            sure = b"".join(pieces[: numbers[0]]) if numbers else spelled
            place = low + first_difference(sure, wanted)
            return int(self._units.byte_start[np.searchsorted(start, place, "right") - 1])
        for number, fill in zip(numbers, fills, strict=True):
            pieces[number] = fill
        return np.array([len(piece) for piece in pieces], np.int64)

    def _locate(self) -> Ints:
        """Compute the byte at which every token of the batch begins, from its place in the normal form."""
        units, num_units = self._units, len(self._units.space)
        # The first whitespace unit at or after each unit.
        spaces = np.where(units.space, np.arange(num_units), num_units)
        next_space = np.append(np.minimum.accumulate(spaces[::-1])[::-1], num_units)
        leads, trails = self._table.leads_space[self._ids], self._table.trails_space[self._ids]
        takes_space = np.ones(len(self._ids), bool)
        takes_space[1:] = leads[1:] | ~trails[:-1]
        start = np.zeros(len(self._ids), np.int64)
        for solid, text_start in ((False, units.exact_start), (True, units.solid_start)):
            chosen = self._is_solid == solid
            place = self._place[chosen]
            # Units [early, late) spell nothing here: the tokenizer dropped them.
            early = np.searchsorted(text_start, place, "left")
            late = np.searchsorted(text_start, place, "right") - 1
            unit = np.where(takes_space[chosen], np.minimum(next_space[early], late), late)
            inside = late < early
            # Inside a unit: its own bytes are the text's only where normalization left it alone.
            depth = np.where(inside & units.unchanged[np.minimum(late, num_units - 1)], place - text_start[late], 0)
            start[chosen] = units.byte_start[np.where(inside, late, unit)] + depth
        return np.maximum.accumulate(np.clip(start, self._low, self._high))


def find_sections(table: TokenByteTable, tokens: Tokens) -> list[Section] | None:
    """Cut a text into the stretches between added tokens; None if an added token is not where the text has it.

    Added tokens are cut out of a text before anything else happens to it, so the next one among the tokens
    is the next one in the text.
    """
    sections: list[Section] = []
    first, start = 0, 0
    for position in _literals(table, tokens):
        entry = table.added[int(tokens.ids[position])]
        found = tokens.text.find(entry.content, start)
        if found < 0:
            return None
        end = max(start, len(tokens.text[:found].rstrip())) if entry.lstrip else found
        sections.append(Section(first, position, start, end))
        first, start = position + 1, found + len(entry.content)
        if entry.rstrip:
            start = len(tokens.text) - len(tokens.text[start:].lstrip())
    sections.append(Section(first, len(tokens.ids), start, len(tokens.text)))
    return sections


def _literals(table: TokenByteTable, tokens: Tokens) -> list[int]:
    """List the numbers of the tokens that are in the text as they stand, an unknown token's own name among them."""
    literal = table.literal[tokens.ids]
    for position in np.flatnonzero(table.unknown[tokens.ids]).tolist():
        start, end = tokens.offsets(position) if tokens.offsets else (0, 0)
        entry = table.added.get(int(tokens.ids[position]))
        literal[position] = entry is not None and tokens.text[start:end] == entry.content
    return np.flatnonzero(literal).tolist()


def only_fill(
    pieces: Sequence[bytes], unknown: Sequence[int], windows: Sequence[tuple[int, int]], wanted: bytes
) -> list[bytes] | None:
    """Find what the unknown pieces must be for all to spell ``wanted``; None unless there is exactly one answer.

    Laid out once from the left, every known run as early as it can be, and once from the right: where both
    agree nothing else fits, for any other layout lies between them.

    Args:
        pieces: what each token spells.
        unknown: the numbers of the unknown pieces, in order, at least one.
        windows: the part of ``wanted`` that each of them lies in.
        wanted: what all pieces spell.
    """
    edges = zip([-1, *unknown], [*unknown, len(pieces)], strict=True)
    first, *middle, last = (b"".join(pieces[before + 1 : after]) for before, after in edges)
    lows, highs = [low for low, _ in windows], [high for _, high in windows]
    # An unknown token stands for something, unless all it can stand for is whitespace, left out here.
    least = [int(low < high) for low, high in windows]
    end = len(wanted) - len(last)
    if len(first) > end or not wanted.startswith(first) or not wanted.endswith(last):
        return None
    early, place = [], len(first)
    for run, low, high, size in zip(middle, lows[1:], highs, least, strict=False):
        early.append(wanted.find(run, max(place + size, low - len(run)), min(high + len(run), end)))
        place = early[-1] + len(run)
    late, place = [], end
    for run, low, high, size in zip(middle[::-1], lows[:0:-1], highs[-2::-1], least[:0:-1], strict=True):
        late.append(wanted.rfind(run, max(low - len(run), len(first)), max(min(place - size, high + len(run)), 0)))
        place = late[-1]
    if early != late[::-1] or -1 in early:
        return None
    begins = [len(first), *(at + len(run) for at, run in zip(early, middle, strict=True))]
    fills = [wanted[begin:stop] for begin, stop in zip(begins, [*early, end], strict=True)]
    return fills if all(len(fill) >= size for fill, size in zip(fills, least, strict=True)) else None


def offset_starts(reading: Reading, tokens: Tokens, offsets: Offsets) -> Ints | int:
    """Locate the byte ``[n]`` at which each token begins by the offsets, or return the first byte that disagrees."""
    table, text = reading.table, tokens.text
    starts, reached = [], 0
    for number, token in enumerate(tokens.ids.tolist()):
        start, end = offsets(number)
        solid = without_whitespace(reading.forms.normal(text[start:end]))
        if start < reached or end < start or not (table.unknown[token] or solid == table.solid[token]):
            return len(text[: max(start, reached)].encode())
        gap = text[reached:start]
        starts.append(reached + next((n for n, character in enumerate(gap) if character.isspace()), len(gap)))
        reached = end
    byte_start = offsets_of(np.array([len(character.encode()) for character in text], np.int64))
    row = byte_start[np.array(starts, np.int64)]
    row[:1] = 0
    return row


def first_difference(left: bytes, right: bytes) -> int:
    """Find the index of the first byte that two byte strings do not share."""
    shared = min(len(left), len(right))
    differ = np.frombuffer(left[:shared], np.uint8) != np.frombuffer(right[:shared], np.uint8)
    return int(differ.argmax()) if differ.any() else shared
