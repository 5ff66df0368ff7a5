"""What a served student makes of a request, against what training makes of the same conversation."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.chat_templates import stock_templates, tokenizer_with
from tests.helpers.talks import RESULT, TALKS, WEATHER, call, said, user
from tests.helpers.thinkers import thinking_tokenizer
from tests.helpers.tokenizers_zoo import MissingPackageError
from uld_ds.conversations import read_messages
from uld_ds.data.sides import TextSide
from uld_ds.data.templates import ChatTemplate, ReplyMarks
from uld_ds.recipe import ModelSettings
from uld_ds.registry import served_student
from uld_ds.registry.served_student import USUAL_CHAT, ServedStudent

# Contents in blocks with reasoning among them; arguments as text; fields of reasoning.
NAMES = ["deepseekv3", "diffusion_gemma", "gptoss", "llama3_2", "qwen3", "smolvlm", "lfm2_2_5"]
BLOCKS = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if m.role == 'assistant' and m.content is not string %}"
    "{% for b in m.content %}{{ '<r>' + b.thinking + '</r>' if b.type == 'thinking' else b.text }}{% endfor %}"
    "{% else %}{{ m.content or '' }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}"
    "{{ '<end>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# As requests spell what data sets spell otherwise.
REQUESTS: dict[str, list[dict[str, Any]]] = {
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]}],
    "thinking": [user("2+2?"), said("4", thinking="so"), user("3+3?")],
    "thinking in parts": [
        user("2+2?"),
        said([{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "4"}]),
        user("3+3?"),
    ],
    "arguments as text": [
        user("Rain?"),
        said(None, tool_calls=[call('{"city": "Rome", "days": null}'), call({"city": "Oslo", "days": None}, number=2)]),
        RESULT,
    ],
}


class Silent:
    """What a served student asks of a model that it is never to run."""

    generation_config = SimpleNamespace(eos_token_id=None)

    def eval(self) -> Any:
        return self


@cache
def students() -> dict[str, tuple[ChatTemplate, ServedStudent]]:
    try:
        found = {name: tokenizer_with(stock_templates()[f"trl/{name}"]) for name in NAMES}
    except MissingPackageError:
        found = {}
    found |= {"thinker": thinking_tokenizer(), "blocks": tokenizer_with(BLOCKS)}
    return {name: pair_of(tokenizer) for name, tokenizer in found.items()}


def pair_of(tokenizer: Any) -> tuple[ChatTemplate, ServedStudent]:
    chat = TextSide(tokenizer, ModelSettings(model="x"), "student").served_chat()
    return ChatTemplate(tokenizer, {}), ServedStudent(Silent(), tokenizer, json.loads(json.dumps(chat)))


@pytest.mark.parametrize("name", ["thinker", "blocks", *NAMES])
def test_requests_are_rendered_as_training_renders_them(name: str) -> None:
    pairs = students()
    if name not in pairs:
        pytest.skip("trl's templates are not installed")
    template, student = pairs[name]
    compared = 0
    for kind, messages in {**TALKS, **REQUESTS}.items():
        for tools in (None, [WEATHER]):
            request = {"messages": messages, "tools": tools, "chat_template_kwargs": {"enable_thinking": True}}
            try:
                expected = template.render(
                    read_messages(messages, "messages"),
                    tools=tools,
                    arguments={"enable_thinking": True},
                    add_generation_prompt=True,
                )
            except ValueError:  # what the template refuses
                continue
            assert student.render(request) == expected, (kind, tools)
            assert student.render(request | {"tools": json.dumps(tools)}) == expected
            compared += 1
    assert compared >= 16


def test_what_a_student_without_a_file_is_taken_for() -> None:
    side = TextSide(thinking_tokenizer(), ModelSettings(model="x", prompt_template="{prompt}"), "student")
    assert {**USUAL_CHAT, **side.served_chat()} | {"control": []} == USUAL_CHAT
    assert ReplyMarks(**USUAL_CHAT["marks"]) == side.reply_marks
    assert USUAL_CHAT.keys() == pair_of(thinking_tokenizer())[1]._chat.keys()


def test_only_text_is_read() -> None:
    picture = [{"role": "user", "content": [{"type": "image", "url": "x"}]}]
    with pytest.raises(ValueError, match="content of type 'image': this student reads text alone"):
        pair_of(thinking_tokenizer())[1].render({"messages": picture})


def test_it_needs_nothing_of_this_package() -> None:
    tree = ast.parse(Path(served_student.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not {name for name in imported if name and name.startswith(("uld_ds", "launcher"))}
