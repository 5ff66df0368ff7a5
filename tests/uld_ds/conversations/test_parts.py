"""The parts of an answer, in the order in which they are said."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.talks import call, said
from uld_ds.conversations import parts_of, read_messages
from uld_ds.conversations.parts import split_inline, texts_of, with_parts


def parts(message: dict[str, Any]) -> list[tuple[str, str, int | None, bool]]:
    (read,) = read_messages([message], "m")
    return [(part.kind, part.text, part.call, part.is_key) for part in parts_of(read, 3)]


def test_reasoning_text_and_calls() -> None:
    message = said("Let me see.", thinking="Hm.", tool_calls=[call({"a": {"b": [1, "x"]}, "c": True, "d": ""})])
    assert parts(message) == [
        ("reasoning", "Hm.", None, False),
        ("text", "Let me see.", None, False),
        ("tool_calls", "get_weather", 0, False),
        ("tool_calls", "a", 0, True),
        ("tool_calls", "b", 0, True),
        ("tool_calls", "1", 0, False),
        ("tool_calls", "x", 0, False),
        ("tool_calls", "c", 0, True),
        ("tool_calls", "true", 0, False),
        ("tool_calls", "d", 0, True),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<think>\nwhy\n</think>\n\nfour", [("reasoning", "why"), ("text", "four")]),
        # The prompt has begun the reasoning.
        ("why\n</think>\nfour\n", [("reasoning", "why"), ("text", "four")]),
        ("<think>\n\n</think>\n\nfour", [("text", "four")]),
        ("<think>why</think>", [("reasoning", "why")]),
        (" four <think> five", [("text", " four <think> five")]),
        (" \n", []),
    ],
)
def test_reasoning_that_stands_in_the_content(content: str, expected: list[tuple[str, str]]) -> None:
    (message,) = read_messages([said(content)], "m")
    assert [(part.kind, part.text) for part in parts_of(message, 0)] == expected
    # Put back where it stood, nothing has changed; and in a field of its own there are the same parts.
    assert with_parts(message, lambda kind, value, number, is_key: value) == message
    assert [(part.kind, part.text.strip()) for part in parts_of(split_inline(message), 0)] == [
        (kind, text.strip()) for kind, text in expected
    ]


def test_forms_are_what_templates_make_of_a_part() -> None:
    (reasoning,) = parts_of({"role": "assistant", "content": "", "reasoning_content": " a\n"}, 0)
    assert reasoning.forms == (" a\n", "a", "a\n", " a")
    *_, value = parts_of(read_messages([said("", tool_calls=[call({"k": 'é "x"\n'})])], "m")[0], 0)
    assert 'é \\"x\\"\\n' in value.forms and '\\u00e9 \\"x\\"\\n' in value.forms
    *_, truth = parts_of(read_messages([said("", tool_calls=[call({"k": True})])], "m")[0], 0)
    assert truth.forms == ("true", "True")


def test_texts_that_a_tokenizer_learns_from() -> None:
    (message,) = read_messages([said("four", reasoning="why", tool_calls=[call({"a": "é"})])], "m")
    assert texts_of(message) == ["why", "four", '{"name": "get_weather", "arguments": {"a": "é"}}']
