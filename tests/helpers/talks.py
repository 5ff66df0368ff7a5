"""Conversations of every kind that people train on: reasoning, tools, several turns."""

from __future__ import annotations

from typing import Any

from uld_ds.conversations import parts_of, read_messages
from uld_ds.data.examples import Example

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where."},
                "days": {"type": "integer", "description": "How far ahead."},
            },
            "required": ["city"],
        },
    },
}
ARGUMENTS = {"city": "Paris", "days": 2, "celsius": True}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def call(arguments: Any = None, *, name: str = "get_weather", number: int = 1) -> dict[str, Any]:
    # Ids of nine letters or digits: some templates refuse others.
    function = {"name": name, "arguments": ARGUMENTS if arguments is None else arguments}
    return {"type": "function", "id": f"call{number:05}", "function": function}


RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "sunny, 20 degrees"}
SYSTEM = {"role": "system", "content": "Be brief and kind."}
QUESTION = user("What is the weather?")

TALKS: dict[str, list[dict[str, Any]]] = {
    "plain": [user("Hi?"), said("Hello there.")],
    "reasoning in the content": [user("2+2?"), said("<think>\nTwo and two.\n</think>\n\nIt is 4.")],
    "reasoning in a field": [user("2+2?"), said("It is 4.", reasoning_content="Two and two.")],
    "several turns": [user("one?"), said("first"), user("two?"), said("second answer")],
    "reasoning in several turns": [
        user("one?"),
        said("first", reasoning_content="why one"),
        user("two?"),
        said("second answer", reasoning_content="why two"),
    ],
    "system": [SYSTEM, user("Hi?"), said("Hello.")],
    "call": [QUESTION, said(None, tool_calls=[call()])],
    "reasoning and call": [QUESTION, said("", reasoning_content="I need a tool.", tool_calls=[call()])],
    "text and call": [QUESTION, said("Let me look.", tool_calls=[call()])],
    "parallel calls": [
        QUESTION,
        said(None, tool_calls=[call(), call({"city": 'Rome "x"', "days": 1}, number=2)]),
    ],
    "result": [QUESTION, said(None, tool_calls=[call()]), RESULT, said("It is sunny.")],
    "reasoning around a result": [
        QUESTION,
        said("", reasoning_content="I need a tool.", tool_calls=[call()]),
        RESULT,
        said("It is sunny.", reasoning_content="The tool says so."),
    ],
}
WITH_TOOLS = ("call", "result")


def talk(name: str) -> Example:
    """One of TALKS as an Example, of which every assistant's turn is an answer."""
    return example(TALKS[name], tools=(WEATHER,) if any(word in name for word in WITH_TOOLS) else None)


def example(messages: list[dict[str, Any]], **fields: Any) -> Example:
    read = read_messages(messages, "messages")
    answers = (i for i, message in enumerate(read) if message["role"] == "assistant" and parts_of(message, i))
    return Example(tuple(read), tuple(answers), **fields)
