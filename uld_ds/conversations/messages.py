"""The reading of messages into one form, whatever a dataset calls their fields.

A message has ``role`` and ``content``; where there is more, also ``reasoning_content``, ``tool_calls``,
``tool_call_id`` and ``name``. Fields that hold nothing are left out, so that a plain message is its role and content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""Names that datasets and templates give the reasoning before an answer; the first one is ours."""


def read_messages(value: Any, column: str) -> list[Message]:
    """Read the value of a column as messages.

    Args:
        value: List of messages, or the JSON text of one.
        column: Name of the column, for messages of errors.

    Raises:
        ValueError: it is no list of messages, or a field of one holds something else than it should.
    """
    turns = _parsed(value, list)
    if turns is None or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(f"column {column!r} does not hold a list of messages")
    is_json = isinstance(value, str)
    return [_message(turn, f"{column}[{place}]", is_json=is_json) for place, turn in enumerate(turns)]


def read_tools(value: Any, column: str) -> list[dict[str, Any]] | None:
    """Read the value of a column as the JSON schemas of tools; None where there are none.

    Args:
        value: List of schemas, each an object or its JSON text; or the JSON text of the list.
        column: Name of the column, for messages of errors.

    Raises:
        ValueError: it is no list of objects.
    """
    if value is None:
        return None
    tools = _parsed(value, list)
    found = None if tools is None else [_parsed(tool, Mapping) for tool in tools]
    if found is None or not all(isinstance(tool, Mapping) and _is_named(tool) for tool in found):
        raise ValueError(f"column {column!r} does not hold a list of tools (objects with a name and a JSON schema)")
    is_json = isinstance(value, str)
    return [
        _json_value(tool, f"{column}[{place}]", is_json=is_json or isinstance(value[place], str))
        for place, tool in enumerate(found)
    ] or None


def _is_named(tool: Mapping[str, Any]) -> bool:
    function = tool.get("function")
    described = tool if function is None else function
    return isinstance(described, Mapping) and isinstance(described.get("name", ""), str)


def read_mapping(value: Any, column: str) -> dict[str, Any]:
    """Read the value of a column as an object, or the JSON text of one; empty where there is none.

    Args:
        value: Value of the column.
        column: Name of the column, for messages of errors.

    Raises:
        ValueError: it is no object.
    """
    if value is None:
        return {}
    found = _parsed(value, Mapping)
    if found is None:
        raise ValueError(f"column {column!r} holds {type(value).__name__}, not an object")
    return dict(_json_value(found, column, is_json=isinstance(value, str)))


def checked_text(value: Any, place: str) -> str:
    """Return a value that is text with a UTF-8 form.

    Args:
        value: Value to check.
        place: Column, or place in it, for messages of errors.

    Raises:
        ValueError: it is something else, or holds a lone surrogate.
    """
    if not isinstance(value, str):
        raise ValueError(f"column {place!r} holds {type(value).__name__}, not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a character, which JSON can spell
            raise ValueError(f"column {place!r} holds a lone surrogate, which is no text") from error
    return value


def _message(turn: Mapping[str, Any], place: str, *, is_json: bool) -> Message:
    content, thoughts = _content(turn.get("content"), f"{place}.content")
    message: Message = {"role": checked_text(turn.get("role"), f"{place}.role"), "content": content}
    named = (turn.get(name) for name in REASONING_NAMES)
    reasoning = checked_text(next(filter(None, named), thoughts), f"{place}.{REASONING_NAMES[0]}")
    if reasoning.strip():
        message[REASONING_NAMES[0]] = reasoning
    if calls := turn.get("tool_calls"):
        message["tool_calls"] = _calls(calls, f"{place}.tool_calls", is_json=is_json)
    for name in ("tool_call_id", "name"):
        if turn.get(name):
            message[name] = checked_text(turn[name], f"{place}.{name}")
    if content is None and not (message["role"] == "assistant" and message.get("tool_calls")):
        message["content"] = ""
    return message


def _content(value: Any, place: str) -> tuple[str | None, str]:
    """Read a content as its text (None: null) and the reasoning among its parts."""
    if value is None:
        return None, ""
    if not isinstance(value, list | tuple):
        return checked_text(value, place), ""
    texts: list[str] = []
    thoughts: list[str] = []
    for number, part in enumerate(value):
        own = f"{place}[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        if kind == "text":
            texts.append(checked_text(part.get("text") if isinstance(part, Mapping) else part, own))
        elif kind in ("thinking", "reasoning"):
            inner = part.get(kind) or part.get("text") or ""
            thoughts.append(_content(inner, own)[0] or "")
        else:
            raise ValueError(f"column {own!r} holds a part of type {kind!r}: only text is distilled")
    return "".join(texts), "".join(thoughts)


def _calls(value: Any, place: str, *, is_json: bool) -> list[dict[str, Any]]:
    """Read tool calls in the form of chat APIs: ``{type, id, function: {name, arguments}}``."""
    calls = _parsed(value, list)
    if calls is None:
        raise ValueError(f"column {place!r} does not hold a list of tool calls")
    is_json = is_json or isinstance(value, str)
    return [_call(call, f"{place}[{number}]", is_json=is_json) for number, call in enumerate(calls)]


def _call(value: Any, place: str, *, is_json: bool) -> dict[str, Any]:
    call = _parsed(value, Mapping)
    # (In a table, a call has the keys of all calls.)
    said = call if call is None or call.get("function") is None else call["function"]
    function = _parsed(said, Mapping)
    if call is None or function is None or not (isinstance(function.get("name"), str) and function["name"].strip()):
        raise ValueError(f"column {place!r} is no tool call: it needs function.name and function.arguments")
    given = (function.get(name) for name in ("arguments", "parameters"))
    text = next((item for item in given if item is not None), "")
    is_json = is_json or any(isinstance(item, str) for item in (value, said, text))
    own = f"{place}.function.arguments"
    # Templates want an object; where one wants the text, it gets it from the object.
    arguments = {} if isinstance(text, str) and not text.strip() else _parsed(text, Mapping)
    if arguments is None:
        kind = "is no JSON object" if isinstance(text, str) else f"holds {type(text).__name__}, not an object"
        raise ValueError(f"column {own!r} {kind}")
    read: dict[str, Any] = {"type": "function"}
    if call.get("id"):
        read["id"] = checked_text(call["id"], f"{place}.id")
    name = checked_text(function["name"], f"{place}.function.name")
    return read | {"function": {"name": name, "arguments": _json_value(arguments, own, is_json=is_json)}}


def _json_value(value: Any, place: str, *, is_json: bool) -> Any:
    """Make lists and dicts of whatever sequences and mappings there are in a value that JSON can spell.

    Args:
        value: Value of a row.
        place: Its column and place in it, for messages of errors.
        is_json: Whether it was JSON text. Else what is null in objects is left out: a table's columns give every row
            the keys of all rows.

    Raises:
        ValueError: JSON cannot spell it: a date, bytes, half of a character.
    """
    if isinstance(value, Mapping):
        return {
            checked_text(key, place): _json_value(item, f"{place}.{key}", is_json=is_json)
            for key, item in value.items()
            if is_json or item is not None
        }
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_json_value(item, f"{place}[{number}]", is_json=is_json) for number, item in enumerate(value)]
    if isinstance(value, str):
        return checked_text(value, place)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(f"column {place!r} holds {type(value).__name__}, which is no value of JSON")


def _parsed(value: Any, kind: Any) -> Any:
    """Return a value of some kind, or what its JSON text holds if that is of the kind; else None."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, kind) else None
