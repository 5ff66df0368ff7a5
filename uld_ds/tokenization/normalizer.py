"""The normal form of a text, unit by unit: what a tokenizer turns characters into before it cuts out tokens.

A normalizer works on a whole string. Here it is asked about the smallest units it can act on, one character
or one base with its combining marks, each asked once and kept; the text's normal form is then the
units' forms side by side, and every byte of it has a known place in the text. That this is what the
tokenizer did is not assumed: the caller compares it with what the tokens spell, and where it is not, has the
normalizer asked about this very text, which takes longer and is right whatever the normalizer goes by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE

from uld_ds.tokenization.token_bytes import (
    BYTE_ALPHABET,
    SpellingRule,
    backend_drops,
    backend_steps,
    is_extender,
    without_whitespace,
)

# These add to or trim the ends of a whole text, so they say nothing about one character; ByteLevel only
# changes the script, which the spelling rule undoes.
_NOT_PER_CHARACTER = {"Prepend", "Strip", "ByteLevel"}
_BYTE_SYMBOL = {byte: symbol for symbol, byte in BYTE_ALPHABET.items()}


def backend_normal(backend: Tokenizer, rule: SpellingRule) -> Callable[[str], bytes]:
    """Build the function from a piece of text to the bytes that a fast tokenizer's tokens spell for it."""
    normalize = _per_character_normalizer(backend)
    dropped = backend_drops(backend, rule)

    def keep(text: str) -> bytes:
        if dropped is None:
            return text.encode()
        if rule.byte_alphabet:
            return bytes(byte for byte in text.encode() if not dropped(_BYTE_SYMBOL[byte]))
        mark = rule.space_marks[0] if rule.space_marks else " "
        return "".join(c for c in text if not dropped(mark if c == " " else c)).encode()

    return lambda text: keep(rule.unmark(normalize(text)))


def backend_phrases(backend: Tokenizer) -> tuple[str, ...]:
    """List the strings of several characters that a fast tokenizer's normalizer rewrites as one."""
    steps = backend_steps(backend, "normalizer")
    patterns = [step["pattern"].get("String", "") for step in steps if step["type"] == "Replace"]
    return tuple(pattern for pattern in patterns if len(pattern) > 1)


def _per_character_normalizer(backend: Tokenizer) -> Callable[[str], str]:
    steps = [step for step in backend_steps(backend, "normalizer") if step["type"] not in _NOT_PER_CHARACTER]
    if not steps:
        return lambda text: text
    # The bindings rebuild a normalizer from its description only as part of a whole tokenizer.
    description = json.loads(Tokenizer(BPE()).to_str())
    description["normalizer"] = {"type": "Sequence", "normalizers": steps}
    normalizer = Tokenizer.from_str(json.dumps(description)).normalizer
    return normalizer.normalize_str


@dataclass(frozen=True)
class UnitText:
    """A text as units, ``U`` of them over ``C`` characters.

    Attributes:
        byte_start: ``[U + 1]``, where each unit begins in the text's UTF-8 bytes, then the number of bytes.
        of_char: ``[C + 1]``, the unit that holds each character, then ``U``.
        exact_start: ``[U + 1]``, where each unit begins in the normal form, then its length.
        solid_start: ``[U + 1]``, where each unit begins in the normal form without whitespace, then its length.
        exact: the normal form.
        solid: the normal form without whitespace.
        unchanged: ``[U]``, whether the unit's form is the unit.
        space: ``[U]``, whether the unit's form is whitespace.
    """

    byte_start: NDArray[np.int64]
    of_char: NDArray[np.int64]
    exact_start: NDArray[np.int64]
    solid_start: NDArray[np.int64]
    exact: bytes
    solid: bytes
    unchanged: NDArray[np.bool_]
    space: NDArray[np.bool_]


class _Forms:
    """A growing table of byte strings that can be laid side by side without a Python loop."""

    def __init__(self) -> None:
        self._forms: list[bytes] = []
        self.length = np.zeros(0, np.int64)
        self._start = np.zeros(0, np.int64)
        self._flat = np.zeros(0, np.uint8)

    def extend(self, forms: list[bytes]) -> None:
        self._forms += forms
        self.length = np.fromiter(map(len, self._forms), np.int64, len(self._forms))
        self._start = np.cumsum(self.length) - self.length
        self._flat = np.frombuffer(b"".join(self._forms) + b"\0", np.uint8)

    def join(self, index: NDArray[np.int32], length: NDArray[np.int64], start: NDArray[np.int64]) -> bytes:
        """Lay the forms numbered ``index`` side by side; ``length`` and ``start`` are theirs in the result."""
        if length.max(initial=0) <= 1:
            return self._flat[self._start[index][length == 1]].tobytes()
        shift = np.repeat(self._start[index] - start[:-1], length)
        return self._flat[shift + np.arange(len(shift))].tobytes()


class NormalForms:
    """The normal forms of all units met so far, for one tokenizer.

    Args:
        normal: from a piece of text to its normal form's bytes.
        merges: whether neighboring characters may be merged; without, every unit is a character.
        phrases: longer strings that are rewritten as one.
    """

    def __init__(self, normal: Callable[[str], bytes], merges: bool, phrases: tuple[str, ...] = ()) -> None:
        self.normal = normal
        self._phrases = phrases
        self._merges = merges
        # By code point, as far as code points have been met.
        self._unit_of_code = np.full(0, -1, np.int32)
        self._extends = np.zeros(0, bool)
        self._unit_of_cluster: dict[str, int] = {}
        self._exact, self._solid = _Forms(), _Forms()
        self._unchanged = np.zeros(0, bool)
        self._space = np.zeros(0, bool)

    def read(self, text: str, breaks: NDArray[np.int64], asks: bool = False) -> UnitText:
        """Read ``text`` as units, none of which reaches across the character positions ``breaks``.

        Args:
            text: the text.
            breaks: positions of characters.
            asks: whether the normalizer is asked where it can be cut; otherwise the characters tell.
        """
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        self._enter_characters(codes)
        units = self._unit_of_code[codes]
        char_bytes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
        char_start = offsets_of(char_bytes)
        first = np.arange(len(codes) + 1)
        if self._merges and asks:
            first, units = self._merge_clusters(text, self._uncuttable(text, breaks), units)
        elif self._merges and (not text.isascii() or any(phrase in text for phrase in self._phrases)):
            first, units = self._merge_clusters(text, self._extending(text, codes, breaks), units)
        exact_length, solid_length = self._exact.length[units], self._solid.length[units]
        exact_start, solid_start = offsets_of(exact_length), offsets_of(solid_length)
        of_char = np.zeros(len(codes) + 1, np.int64)
        of_char[first] = 1
        return UnitText(
            byte_start=char_start[first],
            of_char=np.cumsum(of_char) - 1,
            exact_start=exact_start,
            solid_start=solid_start,
            exact=self._exact.join(units, exact_length, exact_start),
            solid=self._solid.join(units, solid_length, solid_start),
            unchanged=self._unchanged[units],
            space=self._space[units],
        )

    def _enter_characters(self, codes: NDArray[np.uint32]) -> None:
        extra = int(codes.max(initial=0)) + 1 - len(self._extends)
        if extra > 0:
            self._unit_of_code = np.append(self._unit_of_code, np.full(extra, -1, np.int32))
            self._extends = np.append(self._extends, np.zeros(extra, bool))
        new = np.unique(codes[self._unit_of_code[codes] < 0])
        if len(new):
            characters = [chr(code) for code in new.tolist()]
            self._unit_of_code[new] = len(self._unchanged) + np.arange(len(new))
            self._extends[new] = [is_extender(character) for character in characters]
            self._enter(characters)

    def _enter(self, units: list[str]) -> None:
        forms = [self.normal(unit) for unit in units]
        solid = [without_whitespace(form) for form in forms]
        self._exact.extend(forms)
        self._solid.extend(solid)
        unchanged = [form == unit.encode() for form, unit in zip(forms, units, strict=True)]
        space = [
            unit.isspace() or (bool(form) and not bare) for unit, form, bare in zip(units, forms, solid, strict=True)
        ]
        self._unchanged = np.concatenate([self._unchanged, np.array(unchanged, bool)])
        self._space = np.concatenate([self._space, np.array(space, bool)])

    def _extending(self, text: str, codes: NDArray[np.uint32], breaks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell of each character ``[C]`` whether, by itself, it may be merged with the one before it."""
        continues = self._extends[codes]
        for phrase in self._phrases:
            at = text.find(phrase)
            while at >= 0:
                continues[at + 1 : at + len(phrase)] = True
                at = text.find(phrase, at + len(phrase))
        continues[breaks[breaks < len(codes)]] = False
        continues[:1] = False
        return continues

    def _uncuttable(self, text: str, breaks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell of each character ``[C]`` whether the text's normal form shows that it goes with the one before it.

        A text is cut in two wherever the normal forms of both parts, side by side, are that of the whole; the
        parts likewise, until nothing can be cut.
        """
        continues = np.ones(len(text), bool)
        edges = np.unique(np.concatenate([[0], breaks, [len(text)]])).tolist()
        rest = [(start, end, self.normal(text[start:end])) for start, end in pairwise(edges)]
        while rest:
            start, end, form = rest.pop()
            continues[start : start + 1] = False
            for cut in _from_the_middle(start + 1, end):
                left = self.normal(text[start:cut])
                if form.startswith(left) and form == left + (right := self.normal(text[cut:end])):
                    rest += [(start, cut, left), (cut, end, right)]
                    break
        return continues

    def _merge_clusters(
        self, text: str, continues: NDArray[np.bool_], units: NDArray[np.int32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Merge clusters; return the first character of every unit ``[U + 1]`` and the unit numbers ``[U]``."""
        heads = np.flatnonzero(continues[1:] & ~continues[:-1])
        stops = np.flatnonzero(~continues & np.concatenate([[False], continues[:-1]]))
        if len(stops) < len(heads):
            stops = np.append(stops, len(text))
        units = units.copy()
        for head, stop in zip(heads.tolist(), stops.tolist(), strict=True):
            unit = self._cluster(text[head:stop])
            if unit < 0:
                continues[head:stop] = False
            else:
                units[head] = unit
        first = np.flatnonzero(~continues)
        return np.append(first, len(text)), units[first]

    def _cluster(self, cluster: str) -> int:
        """Return the number of the unit that is ``cluster``, or -1 where its characters keep to themselves."""
        unit = self._unit_of_cluster.get(cluster)
        if unit is None:
            alone = b"".join(self.normal(character) for character in cluster)
            unit = -1 if self.normal(cluster) == alone else len(self._unchanged)
            self._unit_of_cluster[cluster] = unit
            if unit >= 0:
                self._enter([cluster])
        return unit


def _from_the_middle(start: int, end: int) -> Iterator[int]:
    """Yield the numbers from ``start`` up to ``end``, those in the middle first."""
    middle = (start + end) // 2
    for distance in range(middle - start + 1):
        if distance:
            yield middle - distance
        if middle + distance < end:
            yield middle + distance


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn ``[n]`` lengths into ``[n + 1]`` offsets, from 0 to the sum of all."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
