"""The bytes that every entry of a vocabulary spells.

Each family of tokenizers writes its tokens in its own script: byte-level BPE in an alphabet of 256
printable characters, SentencePiece with a visible mark for the space and ``<0xNN>`` for a byte, WordPiece
with ``##`` before a continuation. The script is read off the tokenizer's own parts, never off its name, and
whoever uses the bytes checks that they spell the text: a wrong reading ends in an error, not in a wrong
span.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# No UTF-8 text contains this byte, so a token spelled with it never agrees with a text by accident.
UNSPELLABLE = b"\xff"


def _byte_alphabet() -> dict[str, int]:
    """Map each character of byte-level BPE's alphabet to the byte that it stands for.

    Bytes that print in Latin-1 stand for themselves, the others take the code points from 256 on, in order
    (Radford et al. 2019, GPT-2).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTE_ALPHABET = _byte_alphabet()


@dataclass(frozen=True)
class SpellingRule:
    """The script in which a tokenizer writes its tokens."""

    byte_alphabet: bool = False
    """Whether tokens are written in the 256 characters of byte-level BPE."""
    latin1: bool = False
    """Whether tokens are single bytes, written as the character with that number (ByT5)."""
    byte_fallback: bool = False
    """Whether ``<0xNN>`` is the byte NN."""
    space_marks: tuple[str, ...] = ()
    """Characters that stand for a space."""
    continuation_prefix: str = ""
    """Prefix of a token that continues a word, such as ``##``."""
    word_suffix: str = ""
    """Suffix of a token that ends a word, such as ``</w>``."""

    def spell(self, token: str | bytes) -> bytes:
        """Spell the bytes that ``token`` contributes to the text."""
        if isinstance(token, bytes):
            return token
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if self.byte_alphabet and all(character in BYTE_ALPHABET for character in token):
            return bytes(BYTE_ALPHABET[character] for character in token)
        if self.latin1 and all(ord(character) < 256 for character in token):
            return token.encode("latin-1")
        token = token.removeprefix(self.continuation_prefix).removesuffix(self.word_suffix)
        return self.unmark(token).encode()

    def unmark(self, text: str) -> str:
        """Replace the marks in ``text`` that stand for a space by one."""
        for mark in self.space_marks:
            text = text.replace(mark, " ")
        return text


def state_of(component: Any) -> dict[str, Any]:
    """Read the JSON description of one part (normalizer, pre-tokenizer, decoder, model) of a fast tokenizer."""
    return json.loads(component.__getstate__()) if component is not None else {}


def _steps(state: Any) -> Iterator[dict[str, Any]]:
    """Yield the single steps of a part's description, sequences opened."""
    if isinstance(state, list):
        for item in state:
            yield from _steps(item)
    elif isinstance(state, dict) and state.get("type") == "Sequence":
        yield from _steps([value for value in state.values() if isinstance(value, list)])
    elif isinstance(state, dict) and state:
        yield state


def backend_steps(backend: Tokenizer, part: str) -> list[dict[str, Any]]:
    """List the steps of ``part`` (``"normalizer"``, ``"pre_tokenizer"`` or ``"decoder"``) of a fast tokenizer."""
    return list(_steps(state_of(getattr(backend, part))))


def backend_rule(backend: Tokenizer) -> SpellingRule:
    """Read the spelling rule off a fast tokenizer's parts."""
    normalizer, pre_tokenizer, decoder = (
        backend_steps(backend, part) for part in ("normalizer", "pre_tokenizer", "decoder")
    )
    steps = normalizer + pre_tokenizer + decoder
    marks = [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    marks += [step["content"] for step in normalizer if _replaces(step, " ")]
    marks += [
        step["pattern"].get("String", "") for step in decoder if step["type"] == "Replace" and step["content"] == " "
    ]
    prefixes = [step["prefix"] for step in decoder if step["type"] == "WordPiece"]
    suffixes = [step["suffix"] for step in decoder if step["type"] == "BPEDecoder"]
    options = _model_options(backend)
    return SpellingRule(
        byte_alphabet=any(step["type"] == "ByteLevel" for step in steps),
        byte_fallback=bool(options.get("byte_fallback")) or any(step["type"] == "ByteFallback" for step in decoder),
        space_marks=tuple(dict.fromkeys(mark for mark in marks if mark.strip())),
        continuation_prefix=options.get("continuing_subword_prefix") or "".join(prefixes[:1]),
        word_suffix=options.get("end_of_word_suffix") or "".join(suffixes[:1]),
    )


def _replaces(step: dict[str, Any], what: str) -> bool:
    return step["type"] == "Replace" and step["pattern"].get("String") == what


def _model_options(backend: Tokenizer) -> dict[str, Any]:
    """Read the options of a fast tokenizer's model.

    The Unigram binding shows none as attributes, so its description is read instead.
    """
    model = backend.model
    if type(model).__name__ == "Unigram":
        return state_of(model)
    names = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "unk_token")
    return {name: getattr(model, name, None) for name in names}


def backend_unknown_id(backend: Tokenizer) -> int | None:
    """Find the id that a fast tokenizer's *model* gives to what it cannot spell; None if it has none.

    Not the wrapper's ``unk_token_id``: GPT-2's names an end-of-text token that its model never falls back to.
    """
    options = _model_options(backend)
    token = options.get("unk_token")
    return options.get("unk_id") if token is None else backend.token_to_id(token)


def backend_drops(backend: Tokenizer, rule: SpellingRule) -> Callable[[str], bool] | None:
    """Build the test for symbols that a fast tokenizer leaves out without a trace; None if it leaves out none.

    A BPE model without an unknown token skips every symbol that its vocabulary lacks. (SmolLM2's lacks the
    bytes 0x04 and 0xF1, for instance.)
    """
    model = backend.model
    if type(model).__name__ != "BPE" or model.unk_token is not None:
        return None

    def dropped(symbol: str) -> bool:
        forms = (symbol, rule.continuation_prefix + symbol, symbol + rule.word_suffix)
        falls_back = rule.byte_fallback and all(
            model.token_to_id(f"<0x{byte:02X}>") is not None for byte in symbol.encode()
        )
        return not falls_back and all(model.token_to_id(form) is None for form in forms)

    return dropped


def without_whitespace(spelled: bytes) -> bytes:
    """Strip all Unicode whitespace from ``spelled``; part of a character is returned as it is."""
    try:
        return "".join(spelled.decode().split()).encode()
    except UnicodeDecodeError:
        return spelled


def is_extender(character: str) -> bool:
    """Tell whether a normalizer may merge ``character`` with the one before it.

    So it is with combining marks, with the vowels and finals of Hangul syllables, and with what is compatible with
    either: half-width voicing marks, compatibility and half-width jamo. A character that this Python's Unicode does
    not know may be any of these.
    """
    code = ord(unicodedata.normalize("NFKD", character)[0])
    hangul = 0x1160 <= code <= 0x11FF or 0xD7B0 <= code <= 0xD7FF
    return hangul or unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cn")


def _is_no_word_character(character: str) -> bool:
    """Tell whether a character is none of a word to the Rust library: letters, marks, digits, connectors, joiners."""
    kind = unicodedata.category(character)
    return not (kind[0] in "LM" or character.isdecimal() or kind in ("Nl", "Pc") or character in "\u200c\u200d")


class TokenByteTable:
    """The bytes of every token id, filled in as ids are met.

    ``rule``, ``token_of_id``, ``added``, ``unknown_id`` and ``ends_word`` are what it was made with. The attributes
    below are indexed by token id, and valid for ids passed to `ensure`.

    Attributes:
        exact: the bytes that each token spells.
        solid: ``exact`` without whitespace.
        exact_length: length of ``exact`` in bytes.
        solid_length: length of ``solid`` in bytes.
        leads_space: whether the token begins with whitespace.
        trails_space: whether the token ends with whitespace.
        literal: whether it is an added token that is found in the text as it stands, before any normalization.
        single_word: whether it is such a token, and only where it stands as a word of its own.
        twofold: whether it is such a token, and an entry of the model's as well that spells something else; ``exact``
            is what the model's spells.
        unknown: whether it stands for text that the vocabulary cannot spell.

    Args:
        ends_word: whether a character beside a token that must stand as a word of its own lets it be one.
        model_has: whether an added token's id is that of an entry of the model's own vocabulary.
    """

    def __init__(
        self,
        rule: SpellingRule,
        token_of_id: Callable[[int], str | bytes | None],
        added: dict[int, Any],
        unknown_id: int | None,
        normal: Callable[[str], bytes] | None = None,
        ends_word: Callable[[str], bool] = _is_no_word_character,
        model_has: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.rule = rule
        self.token_of_id = token_of_id
        self.added = added
        self.unknown_id = unknown_id
        self.ends_word = ends_word
        self._normal = normal
        self._model_has = model_has
        self.exact: list[bytes] = []
        self.solid: list[bytes] = []
        self._known = np.zeros(0, bool)
        self.exact_length = np.zeros(0, np.int64)
        self.solid_length = np.zeros(0, np.int64)
        self.leads_space = np.zeros(0, bool)
        self.trails_space = np.zeros(0, bool)
        self.literal = np.zeros(0, bool)
        self.single_word = np.zeros(0, bool)
        self.twofold = np.zeros(0, bool)
        self.unknown = np.zeros(0, bool)

    def ensure(self, ids: NDArray[np.int64]) -> None:
        """Make every attribute valid for ``ids`` ``[n]``."""
        if len(ids) == 0:
            return
        self._grow(int(ids.max()) + 1)
        for index in np.unique(ids[~self._known[ids]]).tolist():
            self._enter(index)

    def _grow(self, size: int) -> None:
        extra = size - len(self.exact)
        if extra <= 0:
            return
        extra = max(extra, len(self.exact))
        self.exact.extend([b""] * extra)
        self.solid.extend([b""] * extra)
        for name in ("_known", "leads_space", "trails_space", "literal", "single_word", "twofold", "unknown"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(extra, bool)]))
        for name in ("exact_length", "solid_length"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(extra, np.int64)]))

    def _enter(self, index: int) -> None:
        spelled = self._spell(index)
        solid = without_whitespace(spelled)
        self.exact[index], self.exact_length[index] = spelled, len(spelled)
        self.solid[index], self.solid_length[index] = solid, len(solid)
        text = spelled.decode(errors="replace")
        self.leads_space[index] = text[:1].isspace()
        self.trails_space[index] = text[-1:].isspace()
        self._known[index] = True

    def is_models(self, index: int) -> bool:
        """Tell whether an added token is an entry of the model's as well, whose bytes are not those of its content.

        So it is with Gemma's runs of spaces: ``▁▁`` is added, and the model makes it of two spaces. Control tokens
        are the model's in name only: it makes none of text.

        Args:
            index: Id of any token.
        """
        entry = self.added.get(index)
        if entry is None or entry.special or index == self.unknown_id or not self._model_has(index):
            return False
        return self.rule.spell(entry.content) != entry.content.encode()

    def _spell(self, index: int) -> bytes:
        if index == self.unknown_id:
            self.unknown[index] = True
            return UNSPELLABLE
        if index in self.added:
            entry = self.added[index]
            if self._normal is None or not entry.normalized:
                self.literal[index], self.single_word[index] = True, entry.single_word
                self.twofold[index] = self.is_models(index)
                return self.rule.spell(entry.content) if self.twofold[index] else entry.content.encode()
            # It is looked for in the normalized text, in its own normal form.
            return self._normal(entry.content)
        token = self.token_of_id(index)
        return UNSPELLABLE if token is None else self.rule.spell(token)
