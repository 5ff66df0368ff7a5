"""What each token of a vocabulary spells, and how the tokens of two vocabularies relate by their bytes.

Vocabularies write the same bytes in scripts of their own (``Ġthe``, ``▁the``, ``the`` beside ``##the``); bytes are what
they share. Of a teacher's token two things are asked: which token of the student spells the same (*identity*), and
which one spells the longest beginning of it (*projection*).

What has no bytes takes no part: special tokens, the unknown token, ids without a token. Two exceptions: the teacher's
end of text is the student's, where both have one, and vocabularies that number the same tokens alike, special ones
included, are related token by token.

A vocabulary whose tokenizer drops the spaces between words (WordPiece, whole words) has no byte for them. There a token
that begins a word with a letter or a digit spells a space and the word, as words do in running text; a continuation
(``##ing``) spells what it says, and so does punctuation. Nothing is undone that a tokenizer does to a text before it
cuts it: the vocabulary of one that lower-cases has no ``The``.
"""

from __future__ import annotations

import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uld_ds.places import cache_dir
from uld_ds.span_finder import SpanFinder
from uld_ds.token_bytes import SpellingRule, TokenByteTable, backend_steps
from uld_ds.tokenizer_files import tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
NONE = -1
"""Stands for "no token"."""

# Part of the name of what is kept: to be raised when relations come to mean something else.
_VERSION = 3
# A tokenizer written in Python does not say how it writes its tokens: the reading that spells these decides.
_PROBES = ("The cat's 12 naïve words, unbelievably (re)read.", " plain text")
_DROPS_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_KEEPS_SPACES = {"Metaspace", "ByteLevel"}


@dataclass(frozen=True)
class Vocabulary:
    """V tokens by their ids."""

    tokens: Sequence[str | bytes | None]
    """[V] as the vocabulary writes them; None where an id has none."""
    spellings: Sequence[bytes | None]
    """[V] the bytes of each, or None: special and unknown tokens, ids without a token."""
    is_byte: NDArray[np.bool_]
    """[V] whether it is there to spell a single byte that no other token covers (``<0x0A>``)."""
    end: int | None
    """What ends a text."""

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Of a tokenizer, fast or slow."""
        table = SpanFinder(tokenizer).reading(_PROBES).table
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
            elif index in added:
                spellings.append(added[index].content.encode() or None)
            else:
                spellings.append(_spelling(table, token, words) or None)
        is_byte = np.zeros(size, bool)
        if table.rule.byte_fallback:
            is_byte[:] = [isinstance(token, str) and len(token) == 6 and token[:3] == "<0x" for token in tokens]
        return cls(tokens, spellings, is_byte, tokenizer.eos_token_id)

    def ends_word(self) -> NDArray[np.bool_]:
        """[V] whether what stands before the token is whole: it begins with whitespace, or is a special token."""
        return np.array(
            [
                token is not None and (spelled is None or spelled[:1].isspace())
                for token, spelled in zip(self.tokens, self.spellings, strict=True)
            ],
            dtype=bool,
        )

    def by_bytes(self) -> dict[bytes, int]:
        """The id of each spelling. Of several tokens with the same bytes the one with the lowest id, but a token of a
        character before the one for a byte."""
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
    """Whether a token that begins a word stands for the space before it as well, and can be told by its writing."""
    if rule.byte_alphabet or rule.latin1 or rule.space_marks or rule.word_suffix:
        return False
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return bool(rule.continuation_prefix)
    steps = {step["type"] for step in backend_steps(backend, "pre_tokenizer")}
    return bool(steps & _DROPS_SPACES) and not steps & _KEEPS_SPACES


@dataclass(frozen=True)
class VocabularyRelations:
    """Of each of the teacher's V_t tokens: a token of the student, or -1."""

    identity: Ints
    """[V_t] the student's token with the same bytes, its twin. No two of the teacher's tokens have the same one: of
    several with the same bytes one has a twin, chosen as ``Vocabulary.by_bytes`` says."""
    projection: Ints
    """[V_t] the student's token with the longest bytes that the teacher's token begins with, or is."""
    num_student: int
    """V_s, the size of the student's vocabulary."""
    ends_word: NDArray[np.bool_]
    """[V_t] of the teacher's tokens themselves: ``Vocabulary.ends_word``."""


def relate(student: Vocabulary, teacher: Vocabulary) -> VocabularyRelations:
    """How two vocabularies relate, by the rules that this module's docstring gives."""
    if list(student.tokens) == list(teacher.tokens):
        same = np.arange(len(teacher), dtype=np.int64)
        return VocabularyRelations(same, same.copy(), len(student), teacher.ends_word())
    ids = student.by_bytes()
    longest = max(map(len, ids), default=0)
    identity = np.full(len(teacher), NONE, np.int64)
    projection = np.full(len(teacher), NONE, np.int64)
    for index, spelled in enumerate(teacher.spellings):
        if spelled is None:
            continue
        for length in range(min(len(spelled), longest), 0, -1):
            found = ids.get(spelled[:length], NONE)
            if found != NONE:
                projection[index] = found
                break
    for spelled, index in teacher.by_bytes().items():
        identity[index] = ids.get(spelled, NONE)
    if student.end is not None and teacher.end is not None:
        identity[teacher.end] = projection[teacher.end] = student.end
    return VocabularyRelations(identity, projection, len(student), teacher.ends_word())


def relations_of(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> VocabularyRelations:
    """How two tokenizers' vocabularies relate; what was computed once is kept in the cache folder.

    A file there that is damaged is made anew, and a folder that cannot be written to is no error.
    """
    name = f"{tokenizer_digest(student)[:24]}-{tokenizer_digest(teacher)[:24]}-v{_VERSION}.npz"
    file = cache_dir() / "vocabularies" / name
    kept = _read(file)
    if kept is not None:
        return kept
    relations = relate(Vocabulary.of(student), Vocabulary.of(teacher))
    try:
        _write(file, relations)
    except OSError as error:
        log.warning("the relations of two vocabularies are not kept: %s", error)
    return relations


def _read(file: Path) -> VocabularyRelations | None:
    """What ``_write`` left; None if there is nothing, or something else."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names = ("identity", "projection", "num_student", "ends_word")
            identity, projection, size, ends_word = (arrays[name] for name in names)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s is damaged (%s) and is made anew", file, error)
        return None
    return VocabularyRelations(
        identity.astype(np.int64), projection.astype(np.int64), int(size), ends_word.astype(bool)
    )


def _write(file: Path, relations: VocabularyRelations) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            np.savez_compressed(
                out,
                identity=relations.identity.astype(np.int32),
                projection=relations.projection.astype(np.int32),
                num_student=np.int64(relations.num_student),
                ends_word=relations.ends_word,
            )
        Path(aside).replace(file)
    finally:
        Path(aside).unlink(missing_ok=True)
