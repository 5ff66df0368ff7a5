"""Messages of any dataset become one form, or one line says what is wrong."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from uld_ds.conversations import read_mapping, read_messages, read_tools


def one(**message: Any) -> dict[str, Any]:
    (read,) = read_messages([message], "m")
    return read


def test_plain_messages_stay_as_they_are() -> None:
    assert one(role="user", content=" a\n") == {"role": "user", "content": " a\n"}
    # A table gives every row the columns of all rows: what is null is not there.
    empty = {"tool_calls": None, "reasoning_content": None, "name": None, "tool_call_id": "", "weight": 1}
    assert one(role="assistant", content="b", **empty) == {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_one_name_inside(name: str) -> None:
    expected = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    assert one(role="assistant", content="4", **{name: "2 and 2"}) == expected


def test_contents_of_text_parts() -> None:
    parts = [{"type": "text", "text": "a "}, "b", {"type": "text", "text": " c"}]
    assert one(role="user", content=parts) == {"role": "user", "content": "a b c"}
    blocks = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "4"}]
    assert one(role="assistant", content=blocks) == {"role": "assistant", "content": "4", "reasoning_content": "hm"}


def test_a_null_content_stays_beside_tool_calls_alone() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    assert one(role="assistant", content=None, tool_calls=[call])["content"] is None
    assert one(role="assistant", content=None)["content"] == ""
    assert one(role="tool", content=None)["content"] == ""


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"a": 1, "b": ["x", {"c": None}]}}},
        {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1, "b": ["x", {}]}'}},
        {"id": "c1", "name": "f", "arguments": {"a": 1, "b": ["x", {}], "other_row": None}},
        '{"id": "c1", "function": {"name": "f", "parameters": {"a": 1, "b": ["x", {}]}}}',
    ],
)
def test_tool_calls_in_any_form(call: Any) -> None:
    function = {"name": "f", "arguments": {"a": 1, "b": ["x", {}]}}
    expected = [{"type": "function", "id": "c1", "function": function}]
    assert one(role="assistant", content="", tool_calls=[call])["tool_calls"] == expected


def test_a_null_that_is_written_in_json_is_an_argument() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": null}'}}
    (read,) = one(role="assistant", content="", tool_calls=[call])["tool_calls"]
    assert read["function"]["arguments"] == {"a": None}


def test_no_arguments() -> None:
    for arguments in ({}, None, "", "{}"):
        call = {"function": {"name": "f", "arguments": arguments}}
        (read,) = one(role="assistant", content="", tool_calls=[call])["tool_calls"]
        assert read["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([{"role": "user", "content": 7}], "column 'm[0].content' holds int, not text"),
        ([{"role": None, "content": "a"}], "column 'm[0].role' holds NoneType, not text"),
        ([{"role": "user", "content": "\ud800"}], "column 'm[0].content' holds a lone surrogate, which is no text"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "column 'm[0].content[0]' holds a part of type 'image_url': only text is distilled",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
            "column 'm[0].tool_calls[0].function.arguments' is no JSON object",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}],
            "column 'm[0].tool_calls[0].function.arguments' holds list, not an object",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": "f()"}],
            "column 'm[0].tool_calls' does not hold a list of tool calls",
        ),
        ("no json", "column 'm' does not hold a list of messages"),
        ([["role"]], "column 'm' does not hold a list of messages"),
    ],
)
def test_what_is_no_message(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_messages(value, "m")
    assert str(caught.value) == problem


def test_messages_and_tools_as_json_text() -> None:
    assert read_messages('[{"role": "user", "content": "a"}]', "m") == [{"role": "user", "content": "a"}]
    tool = {"type": "function", "function": {"name": "f", "description": None}}
    assert read_tools([tool], "tools") == [{"type": "function", "function": {"name": "f"}}]
    assert read_tools('[{"name": "f"}]', "tools") == read_tools(['{"name": "f"}'], "tools") == [{"name": "f"}]
    assert read_tools(None, "tools") is None
    assert read_tools([], "tools") is None
    with pytest.raises(ValueError, match=r"^column 'tools' does not hold a list of tools"):
        read_tools([1], "tools")
    assert read_mapping('{"enable_thinking": false}', "k") == read_mapping({"enable_thinking": False, "x": None}, "k")
    with pytest.raises(ValueError, match=r"^column 'k' holds list, not an object$"):
        read_mapping([1], "k")


def _called(arguments: Any, name: Any = "f") -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (_called({"a": [datetime(2020, 1, 1)]}), "arguments.a[0]' holds datetime, which is no value of JSON"),
        (_called({"a": b"x"}), "arguments.a' holds bytes, which is no value of JSON"),
        (_called('{"a": "\\ud800"}'), "arguments.a' holds a lone surrogate, which is no text"),
        (_called({"\ud800": 1}), "arguments' holds a lone surrogate, which is no text"),
        (_called({}, " "), "tool_calls[0]' is no tool call: it needs function.name and function.arguments"),
        (_called("[1]"), "arguments' is no JSON object"),
        (_called(3), "arguments' holds int, not an object"),
    ],
)
def test_values_that_no_template_can_show(messages: Any, problem: str) -> None:
    with pytest.raises(ValueError, match="column") as caught:
        read_messages(messages, "m")
    assert str(caught.value).endswith(problem)


def test_null_is_kept_where_it_was_json_text() -> None:
    def arguments(messages: Any) -> Any:
        return read_messages(messages, "m")[0]["tool_calls"][0]["function"]["arguments"]

    assert arguments(_called({"a": None, "b": 1})) == {"b": 1}
    assert arguments(json.dumps(_called({"a": None, "b": 1}))) == {"a": None, "b": 1}
    assert arguments(_called('{"a": null}')) == {"a": None}
    tool = {"name": "f", "default": None}
    assert read_tools([tool], "t") == [{"name": "f"}]
    assert read_tools([json.dumps(tool)], "t") == read_tools(json.dumps([tool]), "t") == [tool]
    assert read_mapping({"a": None}, "k") == {} and read_mapping('{"a": null}', "k") == {"a": None}


def test_calls_of_a_table_have_the_keys_of_all_calls() -> None:
    flat = {"function": None, "name": "f", "arguments": None, "parameters": {"a": 1}}
    (message,) = read_messages([{"role": "assistant", "content": None, "tool_calls": [flat]}], "m")
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]


def test_blank_reasoning_is_none() -> None:
    assert read_messages([{"role": "assistant", "content": "x", "reasoning": " \n"}], "m") == [
        {"role": "assistant", "content": "x"}
    ]


@pytest.mark.parametrize("tool", [{"function": "f"}, {"function": {"name": 3}}, {"name": []}, 5])
def test_tools_without_a_name_that_is_text(tool: Any) -> None:
    with pytest.raises(ValueError, match="does not hold a list of tools"):
        read_tools([tool], "t")
