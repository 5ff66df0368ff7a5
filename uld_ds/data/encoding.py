"""One side of an example: its tokens, which of them are the answer, and the bytes each covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from uld_ds.alignment import batch_token_spans
from uld_ds.data.rendering import Rendered


@dataclass(frozen=True)
class EncodedSide:
    """Tokens of one side.

    ``ids[first:stop]`` is the answer, ``ids[stop:]`` how this side ends a turn (possibly several tokens, or none).
    ``spans`` [stop - first, 2] holds the bytes of the *answer* that each answer token covers; a token that
    straddles the answer's first byte covers the bytes from there on.
    """

    ids: np.ndarray
    first: int
    stop: int
    spans: np.ndarray


class Encoder:
    """Turns rendered text into tokens with byte spans, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, uses_chat_template: bool) -> None:
        self._tokenizer = tokenizer
        self._prefix = [] if uses_chat_template else _leading_special_ids(tokenizer)
        # An answer with nothing before it: its first token still needs a position that predicts it.
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._start = [] if start is None else [start]

    def __call__(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        ids_of, spans_of = batch_token_spans(self._tokenizer, [item.text for item in rendered])
        return [self._one_side(*item) for item in zip(rendered, ids_of, spans_of, strict=True)]

    def _one_side(self, rendered: Rendered, ids: np.ndarray, spans: np.ndarray) -> EncodedSide:
        begin = len(rendered.text[: rendered.start].encode())
        length = len(rendered.text[rendered.start : rendered.stop].encode())
        # Tokens are in order, so both searches are bisections: the first token that ends after the answer's
        # first byte, and the first one that starts at or after its last.
        first = int(np.searchsorted(spans[:, 1], begin, side="right"))
        stop = max(int(np.searchsorted(spans[:, 0], begin + length, side="left")), first)
        tail: list[int] = []
        if stop == len(ids) and self._tokenizer.eos_token_id is not None:
            tail = [self._tokenizer.eos_token_id]
        prefix = self._prefix or (self._start if first == 0 else [])
        if first + len(prefix) == 0:
            raise ValueError("nothing stands before the answer, and the tokenizer has no BOS or EOS to put there")
        return EncodedSide(
            ids=np.concatenate([prefix, ids, tail]).astype(np.int32),
            first=first + len(prefix),
            stop=stop + len(prefix),
            spans=np.clip(spans[first:stop] - begin, 0, length),
        )


def _leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text (a BOS, or nothing)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for offset in range(len(full) - len(plain) + 1):
        if full[offset : offset + len(plain)] == plain:
            return list(full[:offset])
    return []
