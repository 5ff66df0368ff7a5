"""A tokenizer's chat template: how it wants its messages, and what it writes around them.

Nothing is known of a template by its name. Short conversations are shown to it, and what comes out tells where it takes
reasoning and tool calls, whether it shows system messages, and what it writes before and after an answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from uld_ds.conversations import Message
from uld_ds.conversations.messages import REASONING_NAMES
from uld_ds.conversations.parts import split_inline
from uld_ds.data.control_tokens import ControlTokens
from uld_ds.data.placeholders import shown_numbers, text_stand_in, texts_around, with_stand_ins
from uld_ds.errors import one_line

ReasoningStyle = Literal["fields", "blocks", "inline"]

_USER: Message = {"role": "user", "content": "Hello?"}
_SAID: Message = {"role": "assistant", "content": "Hello."}
_THOUGHT: Message = {"role": "assistant", "reasoning_content": "They greet.", "content": "Hello."}
# Some templates want ids of nine letters or digits.
_CALL: dict[str, Any] = {
    "type": "function",
    "id": "call00001",
    "function": {"name": "look", "arguments": {"where": "here"}},
}
_CALLED: Message = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string", "description": "Where."}},
            "required": ["where"],
        },
    },
}


@dataclass(frozen=True)
class Stretch:
    """A stretch of a text: ``whole[start:stop]``."""

    whole: str
    start: int
    stop: int

    @property
    def text(self) -> str:
        """The characters of the stretch."""
        return self.whole[self.start : self.stop]

    def strip(self) -> Stretch:
        """Return the stretch without white space around it."""
        text = self.text
        start = self.start + len(text) - len(text.lstrip())
        return replace(self, start=start, stop=start + len(text.strip()))

    def without_prefix(self, prefix: str) -> Stretch:
        """Return the stretch without a text that it may begin with."""
        return replace(self, start=self.start + len(prefix)) if self.text.startswith(prefix) else self

    def without_suffix(self, suffix: str) -> Stretch:
        """Return the stretch without a text that it may end with."""
        return replace(self, stop=self.stop - len(suffix)) if self.text.endswith(suffix) else self


@dataclass(frozen=True)
class ReplyMarks:
    """What a template writes around the reasoning and the text of an answer, without white space around it."""

    opening: str
    """Text before reasoning; empty where prompts end with it."""
    closing: str
    """Text between reasoning and what follows it."""
    answer: str
    """Text before an answer without reasoning."""
    begun: str = ""
    """Text that ends a prompt in which the reasoning has begun; empty where none of this template does that."""
    end: str = ""
    """Text after an answer, where no token ends the turn before it."""
    is_known: bool = False
    """Whether the template itself has a place for reasoning; else these are the usual marks."""

    def opens(self, prompt: str) -> bool:
        """Tell whether a prompt itself begins the reasoning: its variables may decide it, one by one.

        Args:
            prompt: Text of the prompt, or its end.
        """
        asked = prompt.rstrip()
        return any(mark and asked.endswith(mark) for mark in (self.begun, self.opening))

    def split(self, reply: str, prompt: str) -> tuple[str, str]:
        """Split what a model has generated into its reasoning and its answer.

        Args:
            reply: Generated text with its control tokens, without what ends the turn.
            prompt: Text of the prompt, or its end.
        """
        reasoning, answer = self.places(reply, prompt)
        return reasoning.text, answer.text

    def places(self, reply: str, prompt: str) -> tuple[Stretch, Stretch]:
        """Find the reasoning and the answer in what a model has generated, without white space around them.

        Args:
            reply: Generated text with its control tokens, without what ends the turn.
            prompt: Text of the prompt, or its end.
        """
        said = self.said(reply)
        nothing = Stretch(reply, said.start, said.start)
        place = reply.find(self.closing, said.start, said.stop) if self.closing else -1
        if place >= 0:
            before, after = replace(said, stop=place), replace(said, start=place + len(self.closing))
            return before.strip().without_prefix(self.opening).strip(), after.strip()
        if self.opens(prompt) or (self.opening and said.text.startswith(self.opening)):
            return said.without_prefix(self.opening).strip(), replace(nothing, start=said.stop, stop=said.stop)
        return nothing, said.without_prefix(self.answer).strip()

    def said(self, reply: str) -> Stretch:
        """Find all that a model says in what it has generated: no text that ends the turn, no white space around it."""
        said = Stretch(reply, 0, len(reply)).strip().without_suffix(self.end).strip()
        # Reasoning by the usual marks is a part of the content.
        return said if self.is_known else said.without_prefix(self.answer).strip()


@dataclass(frozen=True)
class ReplyReader:
    """A reader of generated text: its reasoning and its answer, without control tokens."""

    marks: ReplyMarks
    control: tuple[str, ...]
    """Control tokens of the tokenizer, the longest first."""

    @property
    def may_think(self) -> bool:
        """Whether the template has a place of its own for reasoning."""
        return self.marks.is_known

    def is_marked(self, reply: str, prompt: str = "") -> bool:
        """Tell whether a text with its control tokens, after the end of its prompt, has marks around its parts."""
        marks = (self.marks.closing, self.marks.opening, self.marks.answer, self.marks.end)
        return self.marks.opens(prompt) or any(mark and mark in reply for mark in marks)

    def split(self, reply: str, prompt: str = "") -> tuple[str, str]:
        """Split a text with its control tokens into its reasoning and its answer, without control tokens.

        Args:
            reply: Generated text, without what ends the turn.
            prompt: Text of the prompt, or its end: reasoning may have begun there.
        """
        reasoning, answer = self.marks.split(reply, prompt)
        return self._plain(reasoning), self._plain(answer)

    def _plain(self, text: str) -> str:
        for token in self.control:
            text = text.replace(token, "")
        return text.strip()


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        arguments: Variables of the template, e.g. ``{"enable_thinking": True}``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._arguments = dict(arguments)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render a conversation as text.

        Args:
            messages: Messages as ``read_messages`` returns them.
            tools: JSON schemas of the tools that may be called.
            arguments: Variables of the template that count more than those of the recipe.
            add_generation_prompt: Whether an assistant's turn is to begin at the end.

        Raises:
            ValueError: the template refuses the conversation; quotes what it says.
        """
        own = [self._with_own_answer(message) for message in messages]
        return self._render(own, tools, arguments=arguments, add_generation_prompt=add_generation_prompt)

    def _render(self, messages: list[Message], tools: Sequence[Mapping[str, Any]] | None = None, **options: Any) -> str:
        """Render messages whose reasoning and tool calls are where this template takes them."""
        own = [self._with_own_content(message) for message in messages]
        return self._apply(own, self.no_tools if tools is None else tools, **options)

    def _apply(
        self,
        messages: list[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Apply the template to messages as they are."""
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=None if tools is None else [dict(tool) for tool in tools],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{**self._arguments, **(arguments or {})},
            )
        except Exception as error:  # a template is a program: whatever it does wrong, it does to this conversation
            # "a" + 1 in it is a TypeError; what it raises on purpose is said as it is.
            kind = not isinstance(error, TemplateError | ValueError)
            raise ValueError(f"the chat template refuses the conversation: {one_line(error, kind=kind)}") from error
        assert isinstance(text, str)
        return text

    def split(self, message: Message) -> Message:
        """Return an assistant's message with reasoning out of its content, if this template takes it elsewhere."""
        content = message.get("content")
        if message["role"] != "assistant" or not content or "</think>" not in content:
            return message
        return message if self.reasoning_style == "inline" else split_inline(message)

    def _with_own_content(self, message: Message) -> Message:
        is_text = self.takes_blocks and not isinstance(message.get("content"), list)
        return _in_blocks(message) if is_text else message

    def _with_own_answer(self, message: Message) -> Message:
        """Return an assistant's message with its reasoning and tool calls where this template takes them."""
        if message["role"] != "assistant":
            return message
        message = self.split(message)
        if message.get(REASONING_NAMES[0]) and self.reasoning_style != "inline":
            message = _styled(message, self.reasoning_style)
        if message.get("tool_calls"):
            as_text, null = self.call_style
            message = _with_calls(message, as_text=as_text, null=null)
        return message

    @cached_property
    def no_tools(self) -> list[Any] | None:
        """What the template takes for no tools: nothing, or an empty list where it loops over them unasked."""
        return [] if self._tried([_USER]) is None and self._tried([_USER], tools=[]) is not None else None

    @cached_property
    def takes_blocks(self) -> bool:
        """Whether the template wants a content as a list of blocks, as those of models that see pictures do."""
        said = with_stand_ins(_SAID, 0)
        forms = [_USER, said], [_in_blocks(_USER), _in_blocks(said)]
        plain, in_blocks = (self._tried(messages, tools=self.no_tools) for messages in forms)
        return not (plain and shown_numbers(plain)) and bool(in_blocks and shown_numbers(in_blocks))

    @cached_property
    def reasoning_style(self) -> ReasoningStyle:
        """Where the template takes reasoning: in a field, as a block of the content, or in the content's text."""
        styles: tuple[ReasoningStyle, ...] = ("fields", "blocks")
        for style in styles:
            text = self._probe([_USER, _styled_probe(style)])
            if text is None or not {0, 1} <= set(shown_numbers(text)):
                continue
            # A template that prints a list of blocks as it is does not take them.
            if "'type'" not in text and '"type"' not in text:
                return style
        return "inline"

    @cached_property
    def call_style(self) -> tuple[bool, str | None]:
        """Whether the template wants a call's arguments as text, and what it takes for a content that is null."""
        hidden = with_stand_ins(_CALLED, 0)
        found: tuple[bool, str | None] | None = None
        for as_text, null in product((False, True), (None, "")):
            text = self._probe([_USER, _with_calls(hidden, as_text=as_text, null=null)], tools=[_TOOL])
            if text is None or not {0, 1, 2} <= set(shown_numbers(text)):
                continue
            # Python's quotes: the template prints an object where it wants a text.
            if "': '" not in text and '\\"' not in text:
                return as_text, null
            found = found or (as_text, null)
        return found or (False, "")

    @cached_property
    def shows_system(self) -> bool:
        """Whether system messages are shown."""
        text = self._probe([{"role": "system", "content": text_stand_in(0)}, _USER])
        return text is not None and bool(shown_numbers(text))

    @cached_property
    def header(self) -> str:
        """Text that the template puts where an assistant's turn is to begin; empty if it cannot be told."""
        asked, prompt = self._probe([_USER]), self._probe([_USER], add_generation_prompt=True)
        return prompt[len(asked) :] if asked is not None and prompt and prompt.startswith(asked) else ""

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """Tokens that this template ends a conversation's last turn with, and the tokenizer's end of text."""
        control = ControlTokens(self._tokenizer)
        ends = [str(self._tokenizer.eos_token)] if self._tokenizer.eos_token else []
        said = self._after(_SAID)
        after_text, after_calls = control.in_text(said), control.in_text(self._after(_CALLED, [_TOOL]))
        # A token that ends turns need not be marked as special.
        ends += control.at_start(said.lstrip()) or after_text[:1]
        # What closes a call stands before what ends the turn, and another call may stand between; where the end is none
        # of those that a text may have, it is the last that the template writes.
        ends += [token for token in after_calls if token in after_text][:1] or after_calls[-1:]
        return tuple(dict.fromkeys(ends))

    def _after(self, answer: Message, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """Return the text that stands after an answer to a short question; empty where the template refuses it."""
        text = self._probe([_USER, self._with_own_answer(with_stand_ins(answer, 0))], tools=tools)
        return texts_around(text)[-1] if text is not None and shown_numbers(text) else ""

    @cached_property
    def reply_marks(self) -> ReplyMarks:
        """What this template writes around the reasoning and the text of an answer."""
        prompt = self._probe([_USER], add_generation_prompt=True) or ""
        answer = self.edges[0].strip()
        thought = None if self.reasoning_style == "inline" else self._around(_styled_probe(self.reasoning_style))
        if thought is None or len(thought) < 3:
            return ReplyMarks("<think>", "</think>", answer, end=self._end_in_text)
        before, between = thought[:2]
        if before.startswith(prompt):
            opening = before[len(prompt) :].strip()
            begun = "" if opening else _last_word(self.header or prompt)
            return ReplyMarks(opening, between.strip(), answer, begun, self._end_in_text, is_known=True)
        # By default prompts close the reasoning; with other variables they may begin it.
        asked = self._probe([_USER]) or ""
        own = before[len(asked) :] if before.startswith(asked) else before
        return ReplyMarks(_last_word(own), between.strip(), answer, end=self._end_in_text, is_known=True)

    @cached_property
    def edges(self) -> tuple[str, str]:
        """What this template writes before an answer without reasoning, and after it before the token that ends it."""
        prompt, tail = self._probe([_USER], add_generation_prompt=True) or "", self._after(_SAID)
        plain = self._around(with_stand_ins(_SAID, 0))
        lead = plain[0][len(prompt) :] if plain and plain[0].startswith(prompt) else ""
        return lead, tail[: min((tail.find(end) for end in self.end_texts if end in tail), default=None)]

    @property
    def _end_in_text(self) -> str:
        return self.edges[1].strip()

    def _around(self, answer: Message) -> list[str] | None:
        """Return the texts around the parts of an answer, which has stand-ins, to a short question."""
        text = self._probe([_USER, answer])
        return None if text is None else texts_around(text)

    def _probe(self, messages: list[Message], **options: Any) -> str | None:
        return _unless_refused(self._render, messages, **options)

    def _tried(self, messages: list[Message], **options: Any) -> str | None:
        return _unless_refused(self._apply, messages, **options)


def _unless_refused(render: Callable[..., str], messages: list[Message], **options: Any) -> str | None:
    try:
        return render(messages, **options)
    except ValueError:
        return None


def _styled(message: Message, style: ReasoningStyle) -> Message:
    reasoning = message.get(REASONING_NAMES[0])
    if not reasoning:
        return message
    if style == "fields":
        return message | dict.fromkeys(REASONING_NAMES, reasoning)
    blocks = [{"type": "thinking", "thinking": reasoning}]
    if message.get("content"):
        blocks.append({"type": "text", "text": message["content"]})
    plain = {name: value for name, value in message.items() if name not in REASONING_NAMES}
    return plain | {"content": blocks}


def _in_blocks(message: Message) -> Message:
    return message | {"content": [{"type": "text", "text": message["content"] or ""}]}


def _with_calls(message: Message, *, as_text: bool, null: str | None) -> Message:
    new = dict(message)
    if not message.get("content"):
        new["content"] = null
    if as_text:
        new["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": _as_text(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return new


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _last_word(text: str) -> str:
    words = text.split()
    return words[-1] if words else ""


def _styled_probe(style: ReasoningStyle) -> Message:
    return _styled(with_stand_ins(_THOUGHT, 0), style)
