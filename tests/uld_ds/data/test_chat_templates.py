"""The template that travels with a trained student says what the student was trained on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, toy
from uld_ds.data.chat_templates import as_trained, chat_template_of, literal
from uld_ds.data.examples import Example
from uld_ds.data.rendering import Renderer
from uld_ds.recipe import ModelSettings

VALUES: dict[str, Any] = {
    "on": True,
    "off": None,
    "level": "hi \"there\" 'you' \\ %} {{ x }} \n 😀 é",
    "numbers": [1, -2.5, 1e-07],
    "tree": {"a b": {"c": False}},
}
ASKED = [{"role": "user", "content": "x"}]


def rendered(tokenizer: Any, messages: list[dict[str, Any]] = ASKED, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))


def settings(**changes: Any) -> ModelSettings:
    return ModelSettings(model="x", **changes)


@pytest.mark.parametrize("name", VALUES)
def test_values_are_what_jinja_reads(name: str) -> None:
    show = f"{{{{ {literal(VALUES[name])} == value }}}}"
    assert rendered(toy(chat_template=show), value=VALUES[name]) == "True"


def test_variables_of_the_recipe_count_where_a_request_has_none() -> None:
    tokenizer = toy(chat_template="\n{{ on }} {{ level }} {{ numbers }} {{ tree }} {{ off is none }}")
    trained = as_trained(tokenizer, settings(template_arguments=VALUES), for_encoder=False)
    assert rendered(trained) == rendered(tokenizer, **VALUES)
    assert rendered(trained, on="mine") == rendered(tokenizer, **VALUES | {"on": "mine"})
    # Once more is nothing more; the tokenizer itself stays as it is.
    assert as_trained(trained, settings(template_arguments=VALUES), for_encoder=False) is trained
    assert as_trained(tokenizer, settings(), for_encoder=False) is tokenizer
    assert "set on" not in str(tokenizer.chat_template)


@pytest.mark.parametrize("in_blocks", [False, True])
def test_the_recipes_system_prompt_stands_where_a_request_has_none(in_blocks: bool) -> None:
    template = CHAT_TEMPLATE.replace("m['content']", "m['content'][0]['text']") if in_blocks else CHAT_TEMPLATE
    tokenizer = toy(chat_template=template)
    chosen = settings(system_prompt='Be\n"kind" 😀')
    trained = as_trained(tokenizer, chosen, for_encoder=False)
    expected = Renderer(tokenizer, chosen, "student").prompt(Example.of("x", ""))
    blocks = [{"role": "user", "content": [{"type": "text", "text": "x"}]}] if in_blocks else ASKED
    assert rendered(trained, blocks) == expected == '<system>Be\n"kind" 😀</s>\n<user>x</s>\n<assistant>'
    if not in_blocks:
        own = [{"role": "system", "content": "mine"}, *ASKED]
        assert rendered(trained, own) == "<system>mine</s>\n<user>x</s>\n<assistant>"


def test_each_of_several_templates_has_them() -> None:
    tokenizer = toy()
    tokenizer.chat_template = {"default": "{{ on }}", "tool_use": "tool {{ on }}"}
    trained = as_trained(tokenizer, settings(template_arguments={"on": 3}), for_encoder=False)
    tool = {"type": "function", "function": {"name": "f"}}
    assert [rendered(trained), rendered(trained, tools=[tool])] == ["3", "tool 3"]


def test_a_text_template_becomes_a_chat_template() -> None:
    tokenizer = toy(bos=True)
    chosen = settings(prompt_template="Q 😀: {prompt}\nA:", system_prompt="Be 😀.")
    trained = as_trained(tokenizer, chosen, for_encoder=False)
    assert trained.chat_template == chat_template_of(chosen, tokenizer)
    assert rendered(trained) == Renderer(tokenizer, chosen, "student").prompt(Example.of("x", ""))
    with_own = toy(bos=True, chat_template=CHAT_TEMPLATE)
    assert as_trained(with_own, chosen, for_encoder=False) is with_own
