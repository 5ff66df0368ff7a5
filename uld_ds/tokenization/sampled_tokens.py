"""The bytes of token ids that a model has sampled, as they continue a text.

A model is free to spell a text otherwise than its tokenizer would (``in`` and ``g`` for ``ing``), so nothing is encoded
here: each token contributes its own bytes, and what stands before it may take or give a space. Where a tokenizer puts a
space before every stretch of text, the first token after a special one spells a space that is not in the text. Where a
vocabulary has no spaces (WordPiece, whole words, BPE with ``</w>``), the decoder says which tokens stand apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from uld_ds.tokenization.spans import AlignmentError, SpanFinder
from uld_ds.tokenization.token_bytes import TokenByteTable
from uld_ds.tokenization.vocabulary import PROBES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORD = "a"
# In the first ones a word may stand that was added to the vocabulary of a tokenizer written in Python.
_PROBES = (PROBES, ("Some words, (re)read.",), (_WORD,))


class SampledTokens:
    """A reader of sampled tokens, for one tokenizer, fast or slow.

    Args:
        tokenizer: Tokenizer of the model that samples.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # A table of its own: answers may be read in one thread while another encodes texts.
        self._table = _table(tokenizer)
        # What is written in Python gives any other id the name of its unknown token.
        self._is_fast = getattr(tokenizer, "is_fast", False)
        self._size = 0 if self._is_fast else max(tokenizer.get_vocab().values()) + 1
        self._spelled: dict[int, bytes | None] = {}
        self._takes_space: dict[int | None, bool] = {}
        self._joined: dict[tuple[int, int], bytes] = {}
        self._has_spaces = self._keeps_spaces()

    def spells(self, index: int) -> bool:
        """Tell whether a token spells some text: one that stands for unknown text does not, nor an id without a token.

        Args:
            index: Id of the token; a model may have more rows than its tokenizer has tokens.
        """
        return self._spell(index) is not None

    def pieces(self, ids: Sequence[int], after: Sequence[int] = ()) -> list[bytes]:
        """List the bytes that each token contributes to the text that all of them spell.

        Args:
            ids: [n] sampled ids, of which each spells some text.
            after: Ids before them: those of the prompt.

        Raises:
            ValueError: a token spells nothing.
        """
        pieces = [self._known(index) for index in ids]
        if not self._has_spaces:
            # No space that the decoder would put before the first word: that is the prompt's business.
            return pieces[:1] + [self._apart(*pair) for pair in pairwise(ids)]
        # After what a tokenizer itself puts before a text, or after nothing, the text begins.
        begins = all(map(self._cuts, after))
        before = [None if begins else after[-1], *ids[:-1]]
        for number, index in enumerate(before[: len(pieces)]):
            if pieces[number][:1] == b" " and (index is None or self._cuts(index)) and self._adds_space(index):
                pieces[number] = pieces[number][1:]
        return pieces

    def _known(self, index: int) -> bytes:
        spelled = self._spell(index)
        if spelled is None:
            raise ValueError(f"token {index} spells nothing")
        return spelled

    def _spell(self, index: int) -> bytes | None:
        if index not in self._spelled:
            table = self._table
            try:
                table.ensure(np.array([index], np.int64))
                self._spelled[index] = table.exact[index] if self._has_text(index) else None
            # Beyond the table of a tokenizer written in Python; half of a surrogate pair, which CANINE has as a token.
            except (IndexError, KeyError, TypeError, ValueError):
                self._spelled[index] = None
        return self._spelled[index]

    def _has_text(self, index: int) -> bool:
        if not self._is_fast and (index == self._tokenizer.unk_token_id or index >= self._size):
            return False
        table = self._table
        return not table.unknown[index] and (index in table.added or table.token_of_id(index) is not None)

    def _keeps_spaces(self) -> bool:
        """Tell whether spaces are in the tokens, whatever their script; else they are lost between words."""
        rule = self._table.rule
        if rule.byte_alphabet or rule.latin1 or rule.space_marks:
            return True
        ids = self._ids(f"{_WORD} {_WORD}")
        return any((spelled := self._spell(index)) is not None and spelled.isspace() for index in ids)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _cuts(self, index: int) -> bool:
        """Tell whether a token is an added one, after which a stretch of text begins, and not one of the model's."""
        return index in self._table.added and not self._table.is_models(index)

    def _adds_space(self, index: int | None) -> bool:
        """Tell whether the tokenizer puts a space of its own before text after an added token, or before a text."""
        if index not in self._takes_space:
            before = "" if index is None else str(self._table.added[index].content)
            ids = self._ids(before + _WORD)
            own = ids if index is None else ids[ids.index(index) + 1 :] if index in ids else []
            spelled = b"".join(self._spell(token) or b"" for token in own)
            self._takes_space[index] = spelled == b" " + _WORD.encode()
        return self._takes_space[index]

    def _apart(self, before: int, index: int) -> bytes:
        """Spell a token after another one, with a space between them where the decoder puts one."""
        if (before, index) not in self._joined:
            first, both = (self._decoded(ids) for ids in ([before], [before, index]))
            if both.startswith(first) and len(both) > len(first):
                spelled = both[len(first) :].encode()
            else:
                spelled = b" " + self._known(index)
            self._joined[before, index] = spelled
        return self._joined[before, index]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def _table(tokenizer: PreTrainedTokenizerBase) -> TokenByteTable:
    """Find out the bytes of each token; a tokenizer written in Python is asked about one text after another."""
    finder = SpanFinder(tokenizer)
    for probes in _PROBES[:-1]:
        try:
            return finder.reading(probes).table
        except AlignmentError:
            continue
    return finder.reading(_PROBES[-1]).table
