"""Replies as a model has sampled them: which of their tokens spell reasoning and text, and which are markers.

The text of a reply is what its tokens spell, and its parts are found in it by the marks of the model's own template. It
is then what a rendered conversation is otherwise: text with the places of an answer's parts, beside the bytes that each
of its tokens covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from uld_ds.conversations import Message
from uld_ds.conversations.messages import REASONING_NAMES
from uld_ds.data.encoding import EncodedSide, encoded_turns
from uld_ds.data.examples import Example
from uld_ds.data.placeholders import Place, hidden_messages, places_of
from uld_ds.data.rendering import Rendered, RenderedTurn
from uld_ds.data.sides import TextSide
from uld_ds.data.templates import Stretch
from uld_ds.tokenization.sampled_tokens import SampledTokens

EMPTY = "empty"
NOT_UTF8 = "not UTF-8"
# One byte for the token that ends a reply, whatever that token says.
_END = "\x03"
# Tokens at the end of a prompt among which the white space stands that ends it.
_PROMPT_END = 8
_CONTINUES = range(0x80, 0xC0)


class SampledIds(Protocol):
    """The token ids of a sampled reply."""

    @property
    def ids(self) -> np.ndarray:
        """[T] token ids, the one that ended it included."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the last token is one that ends a reply."""
        ...


@dataclass(frozen=True)
class SampledReply:
    """A reply, and the conversation that it answers."""

    example: Example
    """The conversation with the reply as its answer."""
    rendered: Rendered
    """What the model said alone: its prompt is no part of the text."""
    ids: np.ndarray
    """[n] int32 ids of the tokens that spell the text; the last one is what ended it, where something did."""
    spans: np.ndarray
    """[n, 2] bytes of the text that each of them covers."""
    ended: bool
    """Whether the model has ended it itself; False where it was cut off, also by a control token that says nothing."""

    def encoded(self, rendered: Rendered, prompt: np.ndarray) -> EncodedSide:
        """Return the model's side of the conversation.

        Args:
            rendered: The reply's own rendering, or one that was narrowed to some of its parts.
            prompt: [p] ids of the prompt that it was sampled after.
        """
        (turn,) = encoded_turns(rendered, self.spans)
        turn = turn.shifted(len(prompt))
        ids = np.concatenate([prompt, self.ids]).astype(np.int32)
        return EncodedSide(ids[: turn.end], (turn,))


class ReplyFinder:
    """A finder of the parts of sampled replies, for one model.

    Args:
        side: Side of the model that samples.
    """

    def __init__(self, side: TextSide) -> None:
        self._side = side
        self._tokens = SampledTokens(side.tokenizer)
        self._ends = frozenset(side.end_ids)

    def text(self, sampled: SampledIds, prompt: Sequence[int] | np.ndarray = ()) -> str:
        """Return a reply as text for people: with its control tokens, without what ended it, whatever its bytes.

        Args:
            sampled: The reply.
            prompt: Ids of the prompt before it.
        """
        ids, _ = self._until_end(sampled)
        spelled = self._tokens.pieces(ids, [int(index) for index in prompt])
        return b"".join(spelled).decode(errors="replace")

    def read(self, example: Example, sampled: SampledIds, prompt: np.ndarray) -> SampledReply:
        """Read a reply.

        Args:
            example: The conversation that it answers, whose own last answer does not count.
            sampled: The reply.
            prompt: [p] ids of the prompt that it was sampled after.

        Raises:
            ValueError: it says nothing that can be used; the message is short, and one of few.
        """
        ids, end = self._until_end(sampled)
        before, asked = prompt.tolist(), self._side.prompt(example)
        lead, tail = self._edges(asked, before)
        while True:
            pieces = self._tokens.pieces(ids, before)
            count = _whole_characters(pieces, is_whole=end is not None)
            ids, pieces = ids[:count], pieces[:count]
            text = b"".join(pieces).decode()
            done, places = self._parts(example, text, asked, (lead, tail if end is not None else ""))
            cut = self._first_control(ids, pieces, places)
            if cut is None:
                break
            ids, end = ids[:cut], None
        begin = places[0].start
        is_marker = bool(text[:begin].strip()) or text[:begin] == lead
        edges = np.cumsum([0, *map(len, pieces)])
        if end is None:
            turn = RenderedTurn(0 if is_marker else begin, tuple(places), places[-1].stop)
        else:
            ids, text, edges = [*ids, end], text + _END, np.append(edges, edges[-1] + 1)
            turn = RenderedTurn(0 if is_marker else begin, tuple(places), len(text))
        rendered = Rendered(text[: turn.end], (turn,), done.parts, asked, is_cut=end is None)
        spans = np.stack([edges[:-1], edges[1:]], axis=1)
        return SampledReply(done, rendered, np.array(ids, np.int32), spans, end is not None)

    def _until_end(self, sampled: SampledIds) -> tuple[list[int], int | None]:
        """Return the ids up to the first that says nothing, and the one after them if it ended the reply."""
        ids = sampled.ids.tolist()
        stop = next((place for place, index in enumerate(ids) if index in self._ends), None)
        if stop is None and sampled.ended and ids:
            stop = len(ids) - 1  # a checkpoint may name further ends
        said = ids if stop is None else ids[:stop]
        dumb = next((place for place, index in enumerate(said) if not self._tokens.spells(index)), None)
        if dumb is not None:
            return said[:dumb], None
        return said, None if stop is None else ids[stop]

    def _edges(self, asked: str, prompt: Sequence[int]) -> tuple[str, str]:
        """Return what the template itself writes before an answer, where no prompt holds it, and after it."""
        if self._side.uses_chat_template:
            return self._side.answer_edges
        # White space that ends a text template is left to the answer's first token, if that takes it in.
        space = asked[len(asked.rstrip()) :]
        known = [index for index in prompt[-_PROMPT_END:] if self._tokens.spells(index)]
        spelled = b"".join(self._tokens.pieces(known)).decode(errors="replace")
        there = spelled[len(spelled.rstrip()) :]
        return space.removeprefix(there), ""

    def _parts(self, example: Example, text: str, asked: str, edges: tuple[str, str]) -> tuple[Example, list[Place]]:
        """Return the conversation with a reply as its answer, and the places of its parts in the reply's text."""
        marks = self._side.reply_marks
        reasoning, answer = marks.places(text, asked)
        content = _with_space(answer if marks.is_known else marks.said(text), *edges)
        said: Message = {"role": "assistant", "content": content.text if content.text.strip() else ""}
        if not content.text.strip() and not (marks.is_known and reasoning.text):
            raise ValueError(EMPTY)
        begun, is_cut = "", False
        if marks.is_known and reasoning.text:
            said[REASONING_NAMES[0]] = reasoning.text
        elif not marks.is_known and marks.closing:
            # Reasoning by the usual marks is a part of the content, in which it is one between both marks.
            begun = asked[asked.rfind(marks.opening) :] if marks.opens(asked) else ""
            is_cut = bool(reasoning.text) and marks.closing not in content.text
            said["content"] = f"{begun}{said['content']}{marks.closing if is_cut else ''}"
        done = replace(example, messages=(*example.prompt, said), answers=(len(example.prompt),))
        if is_cut:
            return done, [Place(0, reasoning.start, reasoning.stop)]
        hidden = hidden_messages(done)[-1]["content"]
        found = places_of(said["content"], hidden, done.parts) if said["content"].strip() else []
        shift = content.start - len(begun)
        places = [Place(place.part, place.start + shift, place.stop + shift) for place in found or ()]
        if REASONING_NAMES[0] in said:
            places.insert(0, Place(0, reasoning.start, reasoning.stop))
        if not places:
            # Marks of reasoning, and nothing beside them.
            raise ValueError(EMPTY)
        return done, places

    def _first_control(self, ids: Sequence[int], pieces: Sequence[bytes], places: Sequence[Place]) -> int | None:
        """Find the first control token that is no marker of the template, but stands in a part."""
        control = [place for place, index in enumerate(ids) if index in self._side.control_ids]
        for token in control:
            start = len(b"".join(pieces[:token]).decode())
            if any(place.start <= start < place.stop for place in places):
                return token
        return None


def _with_space(content: Stretch, lead: str, tail: str) -> Stretch:
    """Return a text with the white space around it that no mark of the template stands behind.

    Args:
        content: The text without white space around it.
        lead: What the template writes before it.
        tail: What the template writes after it.
    """
    whole, start, stop = content.whole, content.start, content.stop
    if not whole[:start].strip():
        start = len(lead) if not lead.strip() and whole.startswith(lead) else 0
    if not whole[stop:].strip():
        stop = len(whole) - (len(tail) if not tail.strip() and whole.endswith(tail) else 0)
    return replace(content, start=start, stop=max(start, stop))


def _whole_characters(pieces: Sequence[bytes], *, is_whole: bool) -> int:
    """Count the tokens that spell whole characters: all, or those before the last character if it was cut off.

    Raises:
        ValueError: they spell no UTF-8.
    """
    data = b"".join(pieces)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if is_whole or error.reason != "unexpected end of data":
            raise ValueError(NOT_UTF8) from None
        length, count = len(data), len(pieces)
        while count and (length > error.start or (length < len(data) and data[length] in _CONTINUES)):
            count -= 1
            length -= len(pieces[count])
        return count
    return len(pieces)
