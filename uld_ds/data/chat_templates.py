"""The chat template of a trained student: whoever renders a conversation with it gets what the student was trained on.

A student that was trained on a text template gets one that says the same; another keeps its own, in which the recipe's
variables and its system prompt are what counts where a request has none.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from uld_ds.data.templates import ChatTemplate
from uld_ds.recipe import ModelSettings


def as_trained(
    tokenizer: PreTrainedTokenizerBase, settings: ModelSettings, *, for_encoder: bool
) -> PreTrainedTokenizerBase:
    """Return a student's tokenizer with the chat template that says what it was trained on, itself if it does so.

    Args:
        tokenizer: The student's tokenizer.
        settings: Settings of the student.
        for_encoder: Whether an encoder reads the prompt.
    """
    own: Any = tokenizer.chat_template
    if settings.prompt_template == "chat":
        begin = _defaults(settings, in_blocks=ChatTemplate(tokenizer, settings.template_arguments).takes_blocks)
        named = own if isinstance(own, Mapping) else {"default": own or ""}
        changed = {name: _begun_with(begin, text) for name, text in named.items()}
        template: Any = changed if isinstance(own, Mapping) else changed["default"]
    else:
        template = own or chat_template_of(settings, tokenizer, for_encoder=for_encoder)
    if template == own:
        return tokenizer
    trained = copy.copy(tokenizer)
    trained.chat_template = template
    return trained


def _begun_with(begin: str, template: str) -> str:
    if not begin or template.startswith(begin):
        return template
    # transformers' Jinja drops a line feed that follows a block; the template's own first one stays.
    return begin + ("\n" if template.startswith("\n") else "") + template


def _defaults(settings: ModelSettings, *, in_blocks: bool) -> str:
    """Write the recipe's template variables and system prompt as what counts where a request has none."""
    lines = [
        f"{{% if {name} is not defined %}}{{% set {name} = {literal(value)} %}}{{% endif %}}"
        for name, value in settings.template_arguments.items()
        if name.isidentifier()  # a template can read no other one
    ]
    if settings.system_prompt:
        text = settings.system_prompt
        message = literal({"role": "system", "content": [{"type": "text", "text": text}] if in_blocks else text})
        without = "messages | selectattr('role', 'equalto', 'system') | list | length == 0"
        lines.append(f"{{% if {without} %}}{{% set messages = [{message}] + (messages | list) %}}{{% endif %}}")
    return "".join(lines)


def literal(value: Any) -> str:
    """Write a value as an expression of Jinja.

    Args:
        value: What JSON knows; anything else is written as its text.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(str(key))}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    # Jinja reads escapes as Python does: those of a character beyond 16 bits would be two halves of one.
    return json.dumps(str(value), ensure_ascii=False)


def chat_template_of(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, *, for_encoder: bool = False) -> str:
    """Write a text template as a chat template, so that messages give the student the prompts it was trained on.

    Args:
        settings: Settings of the student.
        tokenizer: The student's tokenizer.
        for_encoder: Whether an encoder reads the prompt, after the tokenizer has put its special tokens around it.
    """
    before, _, after = settings.prompt_template.partition("{prompt}")
    if not for_encoder and _joins_the_answer(after, tokenizer):
        after = after.rstrip(" ")
    bos = "{{ bos_token }}" if _begins_with_bos(tokenizer) and not for_encoder else ""
    system = literal((settings.system_prompt or "") + "\n\n") if settings.system_prompt else '""'
    return (
        bos
        + f"{{{{ {literal(before)} }}}}"
        + f"{{% if messages[0]['role'] != 'system' %}}{{{{ {system} }}}}{{% endif %}}"
        + "{{ messages | map(attribute='content') | join('\\n\\n') }}"
        + f"{{{{ {literal(after)} }}}}"
    )


def _joins_the_answer(after: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the space that ends a template is part of an answer's first token: then the student writes it."""
    answered, asked, bare = (
        tokenizer(f"x{text}", add_special_tokens=False)["input_ids"]
        for text in (f"{after}the", after, after.rstrip(" "))
    )
    return answered[: len(asked)] != asked and answered[: len(bare)] == bare


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("x")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
