"""Three ways to locate a text's tokens, from the surest to the last resort; each is verified byte by byte.

1. `exact_starts`: the tokens' own bytes, side by side, are the text (byte-level BPE, byte fallback, character
   and byte models; also with the one space that SentencePiece puts before a text).
2. `normal_starts`: they are the text's normal form, with or without whitespace (Unigram with NFKC,
   lower-casing WordPiece, text with words that the tokenizer does not know).
3. `offset_starts`: each token is the normal form of the characters that the tokenizer's offsets name.

Spans tile the text, so what a tokenizer drops belongs to a token all the same: whitespace to the token that
follows (where most tokenizers keep it), anything else to the token before. A token that ends inside a
character which normalization has changed has no boundary there, nor at the character's beginning if it began
before: the token that completes the character covers it, and all that its share of the character was read
with. Nor have unknown tokens of which nothing tells where one ends and the next begins: the last of them covers
what all of them stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uld_ds.tokenization.normalizer import NormalForms, offsets_of
from uld_ds.tokenization.sections import Ints, Offsets, Section, Tokens, find_sections
from uld_ds.tokenization.token_bytes import TokenByteTable, without_whitespace
from uld_ds.tokenization.unknown_tokens import coarse_lengths, only_fill


@dataclass(frozen=True)
class Reading:
    """A reading of a tokenizer: what its tokens spell, and what it turns a text into first."""

    table: TokenByteTable
    """The bytes that each token spells."""
    forms: NormalForms
    """The normal forms of a text's units."""
    shifts_offsets: bool = False
    """Whether the tokenizer's own offsets are wrong after a beginning that its normalizer drops."""


@dataclass(frozen=True)
class Effort:
    """How far `normal_starts` goes for a text that its tokens do not spell at first sight."""

    asks_normalizer: bool = False
    """Whether the normalizer is asked where the text can be cut, and added tokens are told by their offsets."""
    coarse: bool = False
    """Whether unknown tokens that nothing tells apart are located together."""


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


def normal_starts(reading: Reading, batch: Sequence[Tokens], effort: Effort) -> list[Ints | int]:
    """Locate the byte ``[n]`` at which each token begins, by the normal form of each text in a batch.

    Where the tokens do not spell a text, its result is the first byte that disagrees.
    """
    return _NormalBatch(reading, batch, effort).starts()


class _NormalBatch:
    """The work of `normal_starts` on several texts laid side by side, so that numpy's fixed cost is paid once."""

    def __init__(self, reading: Reading, batch: Sequence[Tokens], effort: Effort) -> None:
        self._table, self._batch, self._effort = reading.table, batch, effort
        self._ids = np.concatenate([tokens.ids for tokens in batch])
        self._id_list = self._ids.tolist()
        self._char_base = offsets_of(np.array([len(tokens.text) for tokens in batch])).tolist()
        self._token_base = offsets_of(np.array([len(tokens.ids) for tokens in batch])).tolist()
        self._sections = [
            find_sections(reading.table, reading.forms, tokens, effort.asks_normalizer) for tokens in batch
        ]
        breaks = [
            base + edge
            for base, sections in zip(self._char_base, self._sections, strict=False)
            for section in sections or [Section(0, 0, 0, 0)]
            for edge in (section.start, section.end)
        ]
        text = "".join(tokens.text for tokens in batch)
        self._units = reading.forms.read(text, np.array(breaks, np.int64), asks=effort.asks_normalizer)
        exact_length, solid_length = self._table.exact_length[self._ids], self._table.solid_length[self._ids]
        self._unknown = np.flatnonzero(self._table.unknown[self._ids])
        self._windows = self._find_windows(reading.shifts_offsets)
        exact_length[self._unknown] = np.diff(self._units.exact_start[self._windows])[:, 0]
        solid_length[self._unknown] = np.diff(self._units.solid_start[self._windows])[:, 0]
        self._exact_start, self._solid_start = offsets_of(exact_length), offsets_of(solid_length)
        # Per token: its place in the normal form (exact or solid), and the bytes its section lies between.
        num_tokens = len(self._ids)
        self._place = np.zeros(num_tokens, np.int64)
        self._is_solid = np.zeros(num_tokens, bool)
        # ... and whether nothing tells it from the token before.
        self._is_joined = np.zeros(num_tokens, bool)
        self._low = np.zeros(num_tokens, np.int64)
        self._high = np.zeros(num_tokens, np.int64)

    def _find_windows(self, shifts_offsets: bool) -> Ints:
        """Find the units ``[k, 2]`` that each unknown token may stand for: by its offsets, or any of its text."""
        chars = []
        text_of = np.searchsorted(self._token_base, self._unknown, "right") - 1
        shifted = self._shifted_tokens() if shifts_offsets and len(text_of) else set()
        for flat, index in zip(self._unknown.tolist(), text_of.tolist(), strict=True):
            tokens, base = self._batch[index], self._char_base[index]
            if tokens.offsets is None or flat in shifted:
                low, high = 0, len(tokens.text)
            else:
                low, high = tokens.offsets(flat - self._token_base[index])
            chars.append((base + low, base + high))
        begin, end = np.array(chars, np.int64).reshape(-1, 2).T
        of_char = self._units.of_char
        return np.stack([of_char[begin], np.where(begin < end, of_char[end - 1] + 1, of_char[begin])], axis=1)

    def _shifted_tokens(self) -> set[int]:
        """Find the tokens of sections that begin with what the normalizer drops."""
        edges = [
            (self._char_base[index] + section.start, self._token_base[index] + section.first, section)
            for index, sections in enumerate(self._sections)
            for section in sections or []
            if section.start < section.end
        ]
        unit = self._units.of_char[[start for start, _, _ in edges]]
        dropped = self._units.exact_start[unit] == self._units.exact_start[unit + 1]
        begun = [edges[number][1:] for number in np.flatnonzero(dropped).tolist()]
        return {flat for first, section in begun for flat in range(first, first + section.stop - section.first)}

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
            result.append(start[self._token_base[index] : self._token_base[index + 1]] - base[index])
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
        if fills is None and numbers and self._effort.coarse:
            whole = [(0, len(wanted))] * len(numbers)
            for places in (windows.tolist(), whole):
                coarse = coarse_lengths(pieces, numbers, places, wanted)
                if coarse is not None:
                    lengths, joined = coarse
                    self._is_joined[first + np.array(joined, np.int64)] = True
                    return np.array(lengths, np.int64)
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
        # What an unknown token stands for is whitespace where nothing else is left of it.
        blank = self._unknown[np.diff(self._solid_start)[self._unknown] == 0]
        leads[blank] = trails[blank] = True
        takes_space = np.ones(len(self._ids), bool)
        takes_space[1:] = leads[1:] | ~trails[:-1]
        start = np.zeros(len(self._ids), np.int64)
        for chosen, text_start in (
            (np.flatnonzero(~self._is_solid), units.exact_start),
            (np.flatnonzero(self._is_solid), units.solid_start),
        ):
            place = self._place[chosen]
            # Units [early, late) spell nothing here: the tokenizer dropped them.
            early = np.searchsorted(text_start, place, "left")
            late = np.searchsorted(text_start, place, "right") - 1
            unit = np.where(takes_space[chosen], np.minimum(next_space[early], late), late)
            at = units.byte_start[unit]
            # Inside a unit: its own bytes are the text's only where normalization left it alone.
            inside = np.flatnonzero(late < early)
            within = late[inside]
            is_own = units.unchanged[within]
            at[inside] = units.byte_start[within] + np.where(is_own, place[inside] - text_start[within], 0)
            start[chosen] = at
            self._is_joined[chosen[inside[~is_own]]] = True
        start = np.maximum.accumulate(np.clip(start, self._low, self._high))
        begins = np.array(self._token_base[:-1], np.int64)
        full = begins < self._token_base[1:]
        start[begins[full]] = units.byte_start[units.of_char[self._char_base[:-1]]][full]
        if self._is_joined.any():
            start = start[np.maximum.accumulate(np.where(self._is_joined, 0, np.arange(len(start))))]
        return start


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
