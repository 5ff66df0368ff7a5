"""The parts of an assistant's turn: its reasoning, its text and its tool calls, in the order in which they are said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from uld_ds.conversations.messages import REASONING_NAMES, Message

PartKind = Literal["reasoning", "text", "tool_calls"]
KINDS: tuple[PartKind, ...] = ("reasoning", "text", "tool_calls")

# Reasoning that stands in the content; a prompt may end with the opening mark, so that an answer begins after it.
_INLINE = re.compile(r"\A(\s*<think>)?(.*?)(</think>)(.*)\Z", re.DOTALL)
_TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    str.strip,
    str.lstrip,
    str.rstrip,
    lambda text: text.strip("\n"),
    lambda text: text.lstrip("\n"),
    lambda text: text.rstrip("\n"),
)


@dataclass(frozen=True)
class Part:
    """One part of an answer; a tool call has one for its name, and for each key and value of its arguments."""

    kind: PartKind
    text: str
    """Text as the data has it; of a value that is no text, its JSON."""
    turn: int
    """Index of its message in the conversation."""
    call: int | None = None
    """Number of its tool call within the turn."""
    is_key: bool = False
    """Whether it is a key of a tool call's arguments."""

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """Texts that templates make of it, most likely first: as it is, trimmed, or as it stands in JSON."""
        is_trimmed = len(self.text.strip()) == len(self.text)
        forms = [self.text] if is_trimmed else [trim(self.text) for trim in _TRIMS]
        if self.kind == "tool_calls":
            quoted = json.dumps(self.text, ensure_ascii=False)[1:-1]
            ascii_only = json.dumps(self.text)[1:-1]
            forms += [quoted, ascii_only, json.dumps(quoted, ensure_ascii=False)[1:-1]]
            forms += [_PYTHON[self.text]] if self.text in _PYTHON else []
        return tuple(dict.fromkeys(forms))


_PYTHON = {"true": "True", "false": "False", "null": "None"}

Visit = Callable[[PartKind, Any, int | None, bool], Any]
"""A function of kind, value, tool call and whether it is a key, which returns what is to stand in its place."""


def parts_of(message: Message, turn: int) -> list[Part]:
    """List the parts of an assistant's message.

    Args:
        message: Message as ``read_messages`` returns it.
        turn: Index of the message in its conversation.
    """
    parts: list[Part] = []

    def note(kind: PartKind, value: Any, call: int | None, is_key: bool) -> Any:
        parts.append(Part(kind, value if isinstance(value, str) else json.dumps(value), turn, call, is_key))
        return value

    with_parts(message, note)
    return parts


def with_parts(message: Message, visit: Visit) -> Message:
    """Return a message whose parts are replaced by what ``visit`` returns for each of them, in order.

    Reasoning that stands in the content, as ``<think>…</think>``, is a part of its own; it stays where it stands.
    """
    new = dict(message)
    if reasoning := message.get(REASONING_NAMES[0]):
        new[REASONING_NAMES[0]] = visit("reasoning", reasoning, None, False)
    content = message.get("content")
    if content and content.strip():
        inline = None if reasoning else _INLINE.match(content)
        new["content"] = visit("text", content, None, False) if inline is None else _visit_inline(inline, visit)
    if calls := message.get("tool_calls"):
        new["tool_calls"] = [_visit_call(call, number, visit) for number, call in enumerate(calls)]
    return new


def _visit_inline(inline: re.Match[str], visit: Visit) -> str:
    opening, reasoning, closing, text = inline.groups()
    said = [opening or ""]
    for kind, piece, mark in (("reasoning", reasoning, closing), ("text", text, "")):
        inner = piece.strip()
        if inner:
            begin = piece.index(inner)
            said += [piece[:begin], str(visit(kind, inner, None, False)), piece[begin + len(inner) :]]  # type: ignore[arg-type]
        else:
            said.append(piece)
        said.append(mark)
    return "".join(said)


def _visit_call(call: dict[str, Any], number: int, visit: Visit) -> dict[str, Any]:
    function = call["function"]
    name = visit("tool_calls", function["name"], number, False)
    arguments = _visit_value(function["arguments"], number, visit)
    return call | {"function": function | {"name": name, "arguments": arguments}}


def _visit_value(value: Any, call: int, visit: Visit) -> Any:
    if isinstance(value, dict):
        return {
            (visit("tool_calls", key, call, True) if key else key): _visit_value(item, call, visit)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_visit_value(item, call, visit) for item in value]
    return value if value == "" else visit("tool_calls", value, call, False)


def texts_of(message: Message) -> list[str]:
    """List the texts that a message says: its reasoning, its content, and its tool calls as JSON."""
    said = [message.get(REASONING_NAMES[0]), message.get("content")]
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return [text for text in (*said, *calls) if text]


def split_inline(message: Message) -> Message:
    """Return a message with reasoning that stood in its content in a field of its own; any other message itself."""
    content = message.get("content")
    if not content or message.get(REASONING_NAMES[0]) or message["role"] != "assistant":
        return message
    inline = _INLINE.match(content)
    if inline is None:
        return message
    _, reasoning, _, text = inline.groups()
    split = message | {"content": text.strip()}
    return split | ({REASONING_NAMES[0]: reasoning.strip()} if reasoning.strip() else {})
