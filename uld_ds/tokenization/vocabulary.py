"""Vocabularies: the bytes that each token spells, by which the tokens of two vocabularies relate.

Vocabularies write the same bytes in scripts of their own (``Ġthe``, ``▁the``, ``the`` beside ``##the``); bytes are what
they share. Of a teacher's token two things are asked: which token of the student spells the same (*identity*), and
which one spells the longest beginning of it (*projection*).

What has no bytes takes no part: special tokens, the unknown token, ids without a token. Two exceptions: the teacher's
end of text is the student's, where both have one, and vocabularies that number the same tokens alike, special ones
included, are related token by token.

A vocabulary whose tokenizer drops the spaces between words (WordPiece, whole words) has no byte for them. There a token
that begins a word with a letter or a digit spells a space and the word, as words do in running text; a continuation
(``##ing``) spells what it says, and so does punctuation. Nothing is undone that a tokenizer does to a text before it
cuts it: the vocabulary of one that lower-cases has no ``The``. An added token spells its content, but one that the
model makes of text as well (Gemma's ``▁▁``) spells that text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uld_ds.tokenization.spans import SpanFinder
from uld_ds.tokenization.token_bytes import SpellingRule, TokenByteTable, backend_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]

# A tokenizer written in Python does not say how it writes its tokens: the reading that spells these decides (of à, one
# byte is not itself in the alphabet of byte-level BPE, but is in ByT5's).
PROBES = ("The cat's 12 naïve words, voilà: unbelievably (re)read.", " plain text")
_DROPS_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_KEEPS_SPACES = {"Metaspace", "ByteLevel"}


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary: V tokens by their ids, and the bytes that they spell."""

    tokens: Sequence[str | bytes | None]
    """[V] tokens as the vocabulary writes them; None where an id has none."""
    spellings: Sequence[bytes | None]
    """[V] bytes of each token; None for special and unknown tokens and ids without a token."""
    is_byte: NDArray[np.bool_]
    """[V] whether a token is there to spell a single byte that no other token covers (``<0x0A>``)."""
    end: int | None
    """Id of the token that ends a text; None if there is none."""

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Read the vocabulary of a tokenizer, fast or slow."""
        table = SpanFinder(tokenizer).reading(PROBES).table
        size = max(tokenizer.get_vocab().values()) + 1
        added = table.added
        silent = {index for index, entry in added.items() if entry.special} | set(tokenizer.all_special_ids)
        if table.unknown_id is not None:
            silent.add(table.unknown_id)
        words = _drops_spaces(tokenizer, table.rule)
        tokens: list[str | bytes | None] = []
        spellings: list[bytes | None] = []
        for index in range(size):
            token = added[index].content if index in added else table.token_of_id(index)
            tokens.append(token)
            if token is None or index in silent:
                spellings.append(None)
            elif index in added and not table.is_models(index):
                spellings.append(added[index].content.encode() or None)
            else:
                spellings.append(_spelling(table, token, words) or None)
        is_byte = np.zeros(size, bool)
        if table.rule.byte_fallback:
            is_byte[:] = [isinstance(token, str) and len(token) == 6 and token[:3] == "<0x" for token in tokens]
        return cls(tokens, spellings, is_byte, tokenizer.eos_token_id)

    def is_space(self) -> NDArray[np.bool_]:
        """Mark the tokens that spell nothing but spaces, tabs and line breaks, [V]."""
        return np.array([spelled is not None and spelled.isspace() for spelled in self.spellings], dtype=bool)

    def by_bytes(self) -> dict[bytes, int]:
        """Map each spelling to the id of its token.

        Of several tokens with the same bytes it is the one with the lowest id, but a token of a character comes before
        the one for a byte.
        """
        ids: dict[bytes, int] = {}
        of_bytes: dict[bytes, int] = {}
        for index, (spelled, is_byte) in enumerate(zip(self.spellings, self.is_byte.tolist(), strict=True)):
            if spelled is not None:
                (of_bytes if is_byte else ids).setdefault(spelled, index)
        return of_bytes | ids


def _spelling(table: TokenByteTable, token: str | bytes, words: bool) -> bytes:
    try:
        spelled = table.rule.spell(token)
    except UnicodeEncodeError:  # half of a surrogate pair is a token of CANINE's, and part of no text
        return b""
    if words and isinstance(token, str) and token[:1].isalnum():
        return b" " + spelled
    return spelled


def _drops_spaces(tokenizer: PreTrainedTokenizerBase, rule: SpellingRule) -> bool:
    """Tell whether tokens that begin a word stand for the space before it as well, and can be told by their writing."""
    if rule.byte_alphabet or rule.latin1 or rule.space_marks or rule.word_suffix:
        return False
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return bool(rule.continuation_prefix)
    steps = {step["type"] for step in backend_steps(backend, "pre_tokenizer")}
    return bool(steps & _DROPS_SPACES) and not steps & _KEEPS_SPACES
