"""The encoding of one side of an example: its tokens, which of them are answers, and the bytes each covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from uld_ds.data.control_tokens import ControlTokens, TypedTokens
from uld_ds.data.rendering import Rendered
from uld_ds.tokenization.spans import batch_token_spans


@dataclass(frozen=True)
class EncodedPart:
    """The tokens of one part of an answer: ``ids[first:stop]`` spells it.

    ``spans`` [stop - first, 2] holds the bytes of the *part* that each of its tokens covers; a token that straddles the
    part's first byte covers the bytes from there on. Where a part begins within a token of the part before it, spans
    do not begin at 0.
    """

    part: int
    first: int
    stop: int
    spans: np.ndarray
    size: int
    """Bytes of the part."""

    @property
    def is_whole(self) -> bool:
        """Whether its own tokens spell all of it."""
        return len(self.spans) > 0 and self.spans[0, 0] == 0 and self.spans[-1, 1] == self.size


@dataclass(frozen=True)
class EncodedTurn:
    """The tokens of one answer, as ranges of a side's ``ids``.

    ``ids[lead:parts[0].first]``, and what stands between parts, are markers of this side; ``ids[parts[-1].stop:end]``
    is how it ends a turn. Each of them is several tokens, or none.
    """

    lead: int
    parts: tuple[EncodedPart, ...]
    end: int
    gaps: tuple[bool, ...]
    """Whether the tokens before each part, and those after the last one, carry loss."""

    def shifted(self, by: int) -> EncodedTurn:
        """Return the same turn so many tokens later."""
        if by == 0:
            return self
        parts = tuple(replace(part, first=part.first + by, stop=part.stop + by) for part in self.parts)
        return replace(self, lead=self.lead + by, parts=parts, end=self.end + by)


@dataclass(frozen=True)
class EncodedSide:
    """The tokens of one side, and its answers in order; the last one's end is the end of ``ids``."""

    ids: np.ndarray
    turns: tuple[EncodedTurn, ...]
    encoder_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), kw_only=True)
    """Tokens that an encoder reads beside ``ids``, which are then its decoder's; none without an encoder."""


class Encoder:
    """An encoder of rendered text into tokens with byte spans, for one tokenizer.

    Args:
        tokenizer: The tokenizer.
        uses_chat_template: Whether texts come from its chat template, which writes its own BOS.
        typed_as_text: Whether control tokens that were typed become text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, uses_chat_template: bool, typed_as_text: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer).ids
        self._prefix = [] if uses_chat_template else leading_special_ids(tokenizer)
        self._typed = TypedTokens(tokenizer) if typed_as_text else None
        # An answer with nothing before it: its first token still needs a position that predicts it.
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._start = [] if start is None else [start]

    def prompt(self, text: str, typed: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Encode a prompt that an answer is to follow; never to no tokens, if the tokenizer has a BOS or EOS.

        Args:
            text: Text of the prompt.
            typed: Characters of control tokens in it that were typed.
        """
        if typed and self._typed is not None:
            ids_of, spans_of = batch_token_spans(self._tokenizer, [text])
            ids = self._typed.as_text(text, typed, ids_of[0], spans_of[0])[0].tolist()
        else:
            ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*self._prefix_before(ids), *ids] or list(self._start)

    def __call__(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        """Encode rendered conversations.

        Raises:
            AlignmentError: the bytes of a text's tokens cannot be told.
            ValueError: nothing stands before an answer, and the tokenizer has no BOS or EOS to put there.
        """
        ids_of, spans_of = batch_token_spans(self._tokenizer, [item.text for item in rendered])
        return [self._one_side(*item) for item in zip(rendered, ids_of, spans_of, strict=True)]

    def _one_side(self, rendered: Rendered, ids: np.ndarray, spans: np.ndarray) -> EncodedSide:
        if rendered.typed and self._typed is not None:
            ids, spans = self._typed.as_text(rendered.text, rendered.typed, ids, spans)
        turns = encoded_turns(rendered, spans)
        tail: list[int] = []
        ends = ids[turns[-1].parts[-1].stop :].tolist()
        if self._tokenizer.eos_token_id is not None and self._control.isdisjoint(ends):
            tail = [self._tokenizer.eos_token_id]
        prefix = self._prefix_before(ids) or (self._start if turns[0].parts[0].first == 0 else [])
        if turns[0].parts[0].first + len(prefix) == 0:
            raise ValueError("nothing stands before the answer, and the tokenizer has no BOS or EOS to put there")
        whole = np.concatenate([prefix, ids, tail]).astype(np.int32)
        # Without a token before it, not even a marker could be predicted.
        if turns[0].lead + len(prefix) == 0:
            turns[0] = replace(turns[0], lead=1)
        shifted = [turn.shifted(len(prefix)) for turn in turns]
        if tail or shifted[-1].end != len(whole):
            shifted[-1] = replace(shifted[-1], end=len(whole))
        return EncodedSide(whole, tuple(shifted))

    def _prefix_before(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        """Return what the tokenizer puts before a text, unless a template has written it already."""
        number = len(self._prefix)
        return [] if list(ids[:number]) == self._prefix else self._prefix


class SplitEncoder:
    """An encoder of rendered text for an encoder-decoder model: prompts for its encoder, answers for its decoder.

    The encoder's tokens are those that the tokenizer itself makes of a text, special ones included. The decoder's are
    its first token, those of the answer alone, and the end of text, as transformers makes labels.

    Args:
        tokenizer: Tokenizer of both.
        start: Token id that the decoder begins with.
        typed_as_text: Whether control tokens that were typed become text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, *, typed_as_text: bool = False) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._typed = TypedTokens(tokenizer) if typed_as_text else None

    def prompt(self, text: str, typed: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Encode a prompt for the encoder; never to no tokens, because attention needs something to look at."""
        ids = list(self._tokenizer(text)["input_ids"])
        if typed and self._typed is not None:
            ids_of, spans_of = batch_token_spans(self._tokenizer, [text])
            first = len(leading_special_ids(self._tokenizer))
            as_text = self._typed.as_text(text, typed, ids_of[0], spans_of[0])[0].tolist()
            ids[first : first + len(ids_of[0])] = as_text
        return ids or [self._start]

    def __call__(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        """Encode the last answer of rendered conversations, with the prompts that the encoder reads.

        Raises:
            AlignmentError: the bytes of an answer's tokens cannot be told.
        """
        answers = [item.text for item in rendered]
        sides = []
        for item, ids, spans in zip(rendered, *batch_token_spans(self._tokenizer, answers), strict=True):
            assert item.context is not None
            if item.typed and self._typed is not None:
                ids, spans = self._typed.as_text(item.text, item.typed, ids, spans)
            end = self._tokenizer.eos_token_id
            whole = np.concatenate([[self._start], ids, [] if end is None else [end]]).astype(np.int32)
            (turn,) = encoded_turns(item, spans)
            if not item.turns[0].has_lead:
                # The decoder says all of it, also a token without bytes that stands at its beginning.
                part = turn.parts[0]
                begun = replace(part, first=0, spans=np.clip(spans[: part.stop], 0, part.size))
                turn = replace(turn, lead=0, parts=(begun, *turn.parts[1:]))
            turn = replace(turn.shifted(1), end=len(whole))
            asked = self.prompt(item.context, item.context_typed)
            sides.append(EncodedSide(whole, (turn,), encoder_ids=np.asarray(asked, np.int32)))
        return sides


def encoded_turns(rendered: Rendered, spans: np.ndarray) -> list[EncodedTurn]:
    """Find the tokens of the answers in a rendered conversation.

    Args:
        rendered: The conversation, whose turns and their parts are in order.
        spans: [n, 2] bytes of its text that each token covers.
    """
    text, taken = rendered.text, 0
    is_ascii = text.isascii()
    character = byte = 0

    def bytes_before(place: int) -> int:
        nonlocal character, byte
        if is_ascii:
            return place
        byte += len(text[character:place].encode())
        character = place
        return byte

    turns: list[EncodedTurn] = []
    # Tokens are in order, so all searches are bisections.
    for turn in rendered.turns:
        marker = int(np.searchsorted(spans[:, 0], bytes_before(turn.lead), side="left")) if turn.has_lead else 0
        lead = -1
        parts: list[EncodedPart] = []
        for place in turn.parts:
            begin = bytes_before(place.start)
            length = bytes_before(place.stop) - begin
            # The first token that ends after the part's first byte, and the first that starts at or after its last.
            first = max(int(np.searchsorted(spans[:, 1], begin, side="right")), taken)
            if lead < 0:
                lead = min(max(marker, taken), first) if turn.has_lead else first
            taken = max(int(np.searchsorted(spans[:, 0], begin + length, side="left")), first)
            own = np.clip(spans[first:taken] - begin, 0, length)
            parts.append(EncodedPart(place.part, first, taken, own, length))
        if turn.end > turn.stop:
            taken = max(int(np.searchsorted(spans[:, 0], bytes_before(turn.end), side="left")), taken)
        gaps = turn.gaps or (True,) * (len(parts) + 1)
        turns.append(EncodedTurn(lead, tuple(parts), taken, gaps))
    return turns


def leading_special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the ids that the tokenizer itself puts before a text (a BOS, or nothing)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for offset in range(len(full) - len(plain) + 1):
        if full[offset : offset + len(plain)] == plain:
            return list(full[:offset])
    return []
