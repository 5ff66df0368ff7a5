"""Byte spans of the tokens of a text, for one tokenizer, fast or slow.

Reads off the tokenizer's parts how it writes its tokens and what it does to a text first, then locates the
tokens by the surest reading (`uld_ds.tokenization.span_matching`) that the text confirms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any
from unicodedata import category, normalize

import numpy as np
from tokenizers import Tokenizer

from uld_ds.tokenization.normalizer import NormalForms, backend_normal, backend_phrases
from uld_ds.tokenization.sections import Ints, Offsets, Tokens
from uld_ds.tokenization.span_matching import Effort, Reading, exact_starts, normal_starts, offset_starts
from uld_ds.tokenization.token_bytes import (
    SPACE_MARK,
    SpellingRule,
    TokenByteTable,
    backend_rule,
    backend_steps,
    backend_unknown_id,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts whose normal form is looked at together: enough to share numpy's fixed cost, few enough to stay in cache.
NORMAL_BATCH = 64
REPLACEMENT = "\ufffd"
# What a text is located with, from the surest and fastest on; the second and third are for the few texts left.
EFFORTS = (Effort(), Effort(coarse=True), Effort(coarse=True, asks_normalizer=True))


class AlignmentError(ValueError):
    """Tokens that cannot be located in their text; the message says whose, and the first byte that disagrees."""


class SpanFinder:
    """A finder of byte spans for one tokenizer; what it learns about the vocabulary is kept from call to call.

    `span_finder` returns the one that belongs to a tokenizer.

    Args:
        tokenizer: a ``transformers`` tokenizer, fast or slow.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_fast = isinstance(backend, Tokenizer)
        self._readings = [_fast_reading(tokenizer)] if self._is_fast else list(_slow_readings(tokenizer))

    @property
    def name(self) -> str:
        """The tokenizer's name in messages."""
        given = getattr(self._tokenizer, "name_or_path", "")
        kind = type(self._tokenizer).__name__
        return f"{given} ({kind})" if given else kind

    def reading(self, probes: Sequence[str]) -> Reading:
        """Find out how the tokenizer writes its tokens: the first reading that spells all of ``probes``.

        Raises:
            AlignmentError: no reading does.
        """
        if len(self._readings) == 1:
            return self._readings[0]
        data, ids = [_utf8(text) for text in probes], [np.array(row, np.int64) for row in self._ids(probes)]
        for reading in self._readings:
            found = _read(reading, probes, data, ids, lambda _: None, skip={}, effort=Effort())
            if not any(isinstance(outcome, int) for outcome in found.values()):
                return reading
        raise AlignmentError(f"tokenizer {self.name}: how it writes its tokens cannot be told")

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenize(list(texts))["input_ids"]

    def encode(self, texts: Sequence[str]) -> tuple[list[Ints], list[Ints]]:
        """Encode texts into token ids ``[n]`` and byte spans ``[n, 2]`` each, with no special tokens around them.

        Raises:
            AlignmentError: a lone surrogate, a text that the tokenizer refuses, tokens that cannot be located.
        """
        data = [_utf8(text) for text in texts]
        if not data:
            return [], []
        encoded = self._tokenize(list(texts))
        ids = [np.array(row, np.int64) for row in encoded["input_ids"]]
        encodings = encoded.encodings if self._is_fast else None
        starts = self._starts(texts, data, ids, lambda index: encodings[index].token_to_chars if encodings else None)
        return ids, [_tile(row, len(item)) for row, item in zip(starts, data, strict=True)]

    def spans_of_ids(self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]] | None = None) -> Ints:
        """Find the byte spans ``[n, 2]`` of ``ids``, the tokens of ``text`` with no special tokens around them.

        Args:
            text: the text.
            ids: ``[n]`` token ids.
            offsets: ``[n]`` half-open character ranges. They count where the tokens' bytes do not settle the
                matter (unknown tokens); a fast tokenizer is asked for them if they are not given.

        Raises:
            AlignmentError: a lone surrogate, or tokens that cannot be located in ``text``.
        """
        data, row = _utf8(text), np.array(ids, np.int64)

        def own_offsets(_: int) -> Offsets | None:
            if offsets is not None:
                return offsets.__getitem__
            encoding = self._tokenize([text]).encodings[0] if self._is_fast else None
            return encoding.token_to_chars if encoding and encoding.ids == row.tolist() else None

        return _tile(self._starts([text], [data], [row], own_offsets)[0], len(data))

    def _tokenize(self, texts: list[str]) -> Any:
        try:
            return self._tokenizer(
                texts,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        except Exception as error:  # the Rust library raises bare Exceptions
            raise AlignmentError(f"tokenizer {self.name} cannot encode the text: {error}") from error

    def _starts(
        self,
        texts: Sequence[str],
        data: Sequence[bytes],
        ids: Sequence[Ints],
        offsets: Callable[[int], Offsets | None],
    ) -> list[Ints]:
        """Locate the byte at which each token begins, by the first reading that each text confirms.

        Raises:
            AlignmentError: the tokens of a text cannot be located by any reading.
        """
        found: dict[int, Ints] = {}
        furthest: dict[int, int] = {}
        reach = [0] * len(self._readings)
        for effort in EFFORTS:
            # The reading that agreed with most of what is left is tried first.
            for number in sorted(range(len(reach)), key=lambda number: -reach[number]):
                reach[number] = 0
                outcomes = _read(self._readings[number], texts, data, ids, offsets, found, effort)
                for index, outcome in outcomes.items():
                    if isinstance(outcome, int):
                        furthest[index] = max(furthest.get(index, 0), outcome)
                        reach[number] += outcome
                    else:
                        found[index] = outcome
        for index in sorted(furthest.keys() - found.keys()):
            tokens = Tokens(texts[index], ids[index], offsets(index))
            last: Ints | int = furthest[index]
            if tokens.offsets is not None:
                last = offset_starts(self._readings[0], tokens, tokens.offsets)
            if isinstance(last, int):
                raise AlignmentError(self._complaint(data[index], max(last, furthest[index])))
            found[index] = last
        return [found[index] for index in range(len(texts))]

    def _complaint(self, data: bytes, byte: int) -> str:
        return (
            f"tokenizer {self.name}: its tokens do not spell the text; they first disagree at byte {byte} "
            f"of {len(data)}, before {data[byte : byte + 16]!r}"
        )


@lru_cache(maxsize=8)
def _finder(tokenizer: PreTrainedTokenizerBase, size: int) -> SpanFinder:
    return SpanFinder(tokenizer)


def span_finder(tokenizer: PreTrainedTokenizerBase) -> SpanFinder:
    """Return the tokenizer's `SpanFinder`, made anew once tokens have been added to it."""
    return _finder(tokenizer, len(tokenizer))


def _read(
    reading: Reading,
    texts: Sequence[str],
    data: Sequence[bytes],
    ids: Sequence[Ints],
    offsets: Callable[[int], Offsets | None],
    skip: dict[int, Ints],
    effort: Effort,
) -> dict[int, Ints | int]:
    """Locate the tokens of texts not in ``skip`` by one reading: their starts, or the first byte that disagrees."""
    rest = [index for index in range(len(texts)) if index not in skip]
    if not rest:
        return {}
    table = reading.table
    table.ensure(np.concatenate([ids[index] for index in rest]))
    outcome: dict[int, Ints | int] = {}
    if effort == EFFORTS[0]:
        exact = exact_starts(table, [data[index] for index in rest], [ids[index] for index in rest])
        outcome |= {i: row for i, row in zip(rest, exact, strict=True) if row is not None}
        rest = [index for index in rest if index not in outcome]
    wants_offsets = table.unknown | table.single_word | table.twofold
    for first in range(0, len(rest), NORMAL_BATCH):
        chunk = rest[first : first + NORMAL_BATCH]
        batch = [
            Tokens(
                texts[index],
                ids[index],
                offsets(index) if effort.asks_normalizer or wants_offsets[ids[index]].any() else None,
            )
            for index in chunk
        ]
        outcome |= zip(chunk, normal_starts(reading, batch, effort), strict=True)
    return outcome


def _fast_reading(tokenizer: PreTrainedTokenizerBase) -> Reading:
    """Build the reading that a fast tokenizer's parts describe."""
    backend = tokenizer.backend_tokenizer
    rule = backend_rule(backend)
    normal = backend_normal(backend, rule)
    steps = {step["type"] for step in backend_steps(backend, "normalizer")}
    added, model = backend.get_added_tokens_decoder(), backend.model
    table = TokenByteTable(
        rule,
        backend.id_to_token,
        added=added,
        unknown_id=backend_unknown_id(backend),
        normal=normal if steps else None,
        model_has=lambda index: model.token_to_id(added[index].content) == index,
    )
    # tokenizers 0.23: Precompiled does not count characters that it drops before any that it keeps.
    forms = NormalForms(normal, bool(steps), backend_phrases(backend))
    return Reading(table, forms, shifts_offsets="Precompiled" in steps)


def _slow_readings(tokenizer: PreTrainedTokenizerBase) -> Iterator[Reading]:
    """Yield the readings worth trying for a slow tokenizer, which does not describe itself: the text decides."""
    rules = {
        "##e": SpellingRule(continuation_prefix="##"),
        "e</w>": SpellingRule(word_suffix="</w>"),
        SPACE_MARK: SpellingRule(space_marks=(SPACE_MARK,), byte_fallback=True),
        "Ġ": SpellingRule(byte_alphabet=True),
        "é": SpellingRule(latin1=True),
    }
    # Next to unknown tokens a text may confirm several: those that the vocabulary speaks for come first.
    likely = sorted(rules, key=lambda token: not _is_token(tokenizer, token))
    normals: list[Callable[[str], str]] = [str, _nfc, _nfkc]
    normals += [] if getattr(tokenizer, "do_lower_case", None) is False else [str.lower, _lower_without_accents]
    normals += [_cleaned]
    # An unknown token's name may stand in the text itself; only if it does not is the token really unknown.
    for unknown_id, normal, token in product((None, tokenizer.unk_token_id), normals, likely):
        table = TokenByteTable(
            rules[token],
            lambda index: _slow_token(tokenizer, index),
            added=tokenizer.added_tokens_decoder,
            unknown_id=unknown_id,
            ends_word=" ".__eq__,  # transformers 5.23, `PythonBackend.tokenize`
            model_has=lambda index: index < tokenizer.vocab_size,
        )
        yield Reading(table, NormalForms(_encoded(normal, rules[token]), merges=normal is not str))


def _slow_token(tokenizer: PreTrainedTokenizerBase, index: int) -> Any:
    """Read a token off a slow tokenizer, the character itself where it is another name for one (CANINE's markers)."""
    token = tokenizer.convert_ids_to_tokens(index)
    is_character = (
        isinstance(token, str) and len(token) > 1 and index != tokenizer.unk_token_id and index <= sys.maxunicode
    )
    return chr(index) if is_character and _is_token(tokenizer, chr(index), index) else token


def _is_token(tokenizer: PreTrainedTokenizerBase, token: str, index: int | None = None) -> bool:
    """Tell whether ``token`` is one of a slow tokenizer's, with the number ``index`` if that is given."""
    try:
        found = tokenizer.convert_tokens_to_ids(token)
    except (TypeError, ValueError, KeyError):  # CANINE, ByT5: more than one character; others: not in their table
        return False
    return found not in (None, tokenizer.unk_token_id) and index in (None, found)


def _encoded(normal: Callable[[str], str], rule: SpellingRule) -> Callable[[str], bytes]:
    return lambda text: rule.unmark(normal(text)).encode()


def _nfc(text: str) -> str:
    return normalize("NFC", text)


def _nfkc(text: str) -> str:
    return normalize("NFKC", text)


def _lower_without_accents(text: str) -> str:
    """Clean and lower-case a text and strip accents as BERT's own tokenizer does.

    The text is taken as a whole: a sigma at a word's end is another letter than elsewhere.
    """
    characters = normalize("NFD", _cleaned(text).lower())
    return "".join(character for character in characters if category(character) != "Mn")


def _cleaned(text: str) -> str:
    """Clean a text as BERT's own tokenizer does, then compose it.

    Control, unassigned and private-use characters go, and so does the replacement character.
    """
    kept = (c for c in text if c.isspace() or (category(c)[0] != "C" and c != REPLACEMENT))
    return normalize("NFC", "".join(kept))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise AlignmentError(
            f"the text is not valid Unicode: a lone surrogate (U+{code:04X}) at character {error.start}"
        ) from None


def _tile(starts: Ints, size: int) -> Ints:
    """Turn ``[n]`` starts into ``[n, 2]`` spans that cover ``[0, size)`` without holes."""
    spans = np.empty((len(starts), 2), np.int64)
    spans[:, 0] = starts
    spans[:-1, 1] = starts[1:]
    spans[-1:, 1] = size
    return spans


def token_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Find the half-open UTF-8 byte range of each token of ``tokenizer(text, add_special_tokens=False)``.

    The ranges tile the text in order. What the tokenizer drops belongs to a token all the same: whitespace
    to the token that follows, anything else to the token before. The list is empty if there are no tokens:
    for ``""``, and for a text of which the tokenizer keeps nothing.

    Raises:
        AlignmentError: ``text`` holds a lone surrogate, or its tokens cannot be located; the message names the
            tokenizer and the first byte that disagrees.
    """
    _, spans = span_finder(tokenizer).encode([text])
    return [(start, end) for start, end in spans[0].tolist()]


def batch_token_spans(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[list[Ints], list[Ints]]:
    """Encode texts into token ids ``[n]`` and byte spans ``[n, 2]`` each, as `token_spans` has them, in one go.

    Raises:
        AlignmentError: a text holds a lone surrogate, or its tokens cannot be located; names the first text at fault.
    """
    return span_finder(tokenizer).encode(texts)


def spans_of_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]] | None = None
) -> Ints:
    """Find the byte spans ``[n, 2]`` of tokens that are there already.

    Args:
        tokenizer: the tokenizer that made them.
        text: the text.
        ids: ``[n]`` ids of its tokens, with no special tokens around them.
        offsets: ``[n]`` half-open character ranges, if at hand.

    Raises:
        AlignmentError: a lone surrogate, or tokens that cannot be located in ``text``.
    """
    return span_finder(tokenizer).spans_of_ids(text, ids, offsets)
