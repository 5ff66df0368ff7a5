"""The encoding of one side of an example: its tokens, which of them are answers, and the bytes each covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from uld_ds.data.rendering import Rendered, RenderedTurn
from uld_ds.tokenization.spans import batch_token_spans


@dataclass(frozen=True)
class EncodedTurn:
    """The tokens of one answer, as ranges of a side's ``ids``.

    ``ids[first:stop]`` spells the answer, ``ids[stop:end]`` is how this side ends a turn (several tokens, or none).
    ``spans`` [stop - first, 2] holds the bytes of the *answer* that each of its tokens covers; a token that
    straddles the answer's first byte covers the bytes from there on.
    """

    first: int
    stop: int
    end: int
    spans: np.ndarray


@dataclass(frozen=True)
class EncodedSide:
    """The tokens of one side, and its answers in order; the last one's end is the end of ``ids``."""

    ids: np.ndarray
    turns: tuple[EncodedTurn, ...]
    encoder_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), kw_only=True)
    """Tokens that an encoder reads beside ``ids``, which are then its decoder's; none without an encoder."""


class Encoder:
    """An encoder of rendered text into tokens with byte spans, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, uses_chat_template: bool) -> None:
        self._tokenizer = tokenizer
        self._prefix = [] if uses_chat_template else leading_special_ids(tokenizer)
        # An answer with nothing before it: its first token still needs a position that predicts it.
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._start = [] if start is None else [start]

    def prompt(self, text: str) -> list[int]:
        """Encode a prompt that an answer is to follow; never to no tokens, if the tokenizer has a BOS or EOS."""
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*self._prefix, *ids] or list(self._start)

    def __call__(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        """Encode rendered conversations.

        Raises:
            AlignmentError: the bytes of a text's tokens cannot be told.
            ValueError: nothing stands before an answer, and the tokenizer has no BOS or EOS to put there.
        """
        ids_of, spans_of = batch_token_spans(self._tokenizer, [item.text for item in rendered])
        return [self._one_side(*item) for item in zip(rendered, ids_of, spans_of, strict=True)]

    def _one_side(self, rendered: Rendered, ids: np.ndarray, spans: np.ndarray) -> EncodedSide:
        turns: list[EncodedTurn] = []
        for turn in rendered.turns:
            turns.append(encoded_turn(rendered.text, turn, spans, turns[-1].end if turns else 0))
        last = turns[-1]
        tail: list[int] = []
        if last.stop == len(ids) and self._tokenizer.eos_token_id is not None:
            tail = [self._tokenizer.eos_token_id]
        prefix = self._prefix or (self._start if turns[0].first == 0 else [])
        if turns[0].first + len(prefix) == 0:
            raise ValueError("nothing stands before the answer, and the tokenizer has no BOS or EOS to put there")
        whole = np.concatenate([prefix, ids, tail]).astype(np.int32)
        shifted = [
            EncodedTurn(turn.first + len(prefix), turn.stop + len(prefix), turn.end + len(prefix), turn.spans)
            for turn in turns[:-1]
        ]
        shifted.append(EncodedTurn(last.first + len(prefix), last.stop + len(prefix), len(whole), last.spans))
        return EncodedSide(whole, tuple(shifted))


class SplitEncoder:
    """An encoder of rendered text for an encoder-decoder model: prompts for its encoder, answers for its decoder.

    The encoder's tokens are those that the tokenizer itself makes of a text, special ones included. The decoder's are
    its first token, those of the answer alone, and the end of text, as transformers makes labels.

    Args:
        tokenizer: Tokenizer of both.
        start: Token id that the decoder begins with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int) -> None:
        self._tokenizer = tokenizer
        self._start = start

    def prompt(self, text: str) -> list[int]:
        """Encode a prompt for the encoder; never to no tokens, because attention needs something to look at."""
        return list(self._tokenizer(text)["input_ids"]) or [self._start]

    def __call__(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        """Encode the last answer of rendered conversations, with the prompts that the encoder reads.

        Raises:
            AlignmentError: the bytes of an answer's tokens cannot be told.
        """
        answers = [item.shown()[-1] for item in rendered]
        sides = []
        for item, ids, spans in zip(rendered, *batch_token_spans(self._tokenizer, answers), strict=True):
            assert item.context is not None
            end = self._tokenizer.eos_token_id
            whole = np.concatenate([[self._start], ids, [] if end is None else [end]]).astype(np.int32)
            turn = EncodedTurn(1, 1 + len(ids), len(whole), spans)
            sides.append(EncodedSide(whole, (turn,), encoder_ids=np.asarray(self.prompt(item.context), np.int32)))
        return sides


def encoded_turn(text: str, turn: RenderedTurn, spans: np.ndarray, earliest: int) -> EncodedTurn:
    """Find the tokens of one answer.

    Args:
        text: Text of the whole side.
        turn: Where the answer is in it.
        spans: [n, 2] bytes of ``text`` that each token covers.
        earliest: First token that may belong to the answer; those before it belong to another turn.
    """
    begin = len(text[: turn.start].encode())
    length = len(text[turn.start : turn.stop].encode())
    mark = len(text[turn.stop : turn.end].encode())
    # Tokens are in order, so all searches are bisections: the first token that ends after the answer's first byte,
    # the first one that starts at or after its last, and the same for what ends the turn.
    first = max(int(np.searchsorted(spans[:, 1], begin, side="right")), earliest)
    stop = max(int(np.searchsorted(spans[:, 0], begin + length, side="left")), first)
    end = max(int(np.searchsorted(spans[:, 0], begin + length + mark, side="left")), stop) if mark else stop
    return EncodedTurn(first, stop, end, np.clip(spans[first:stop] - begin, 0, length))


def leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the ids that the tokenizer itself puts before a text (a BOS, or nothing)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for offset in range(len(full) - len(plain) + 1):
        if full[offset : offset + len(plain)] == plain:
            return list(full[:offset])
    return []
