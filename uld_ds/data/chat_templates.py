"""The chat template of a student that was trained on a text template."""

from __future__ import annotations

import json

from transformers import PreTrainedTokenizerBase

from uld_ds.recipe import ModelSettings


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
    system = json.dumps((settings.system_prompt or "") + "\n\n") if settings.system_prompt else '""'
    return (
        bos
        + f"{{{{ {json.dumps(before)} }}}}"
        + f"{{% if messages[0]['role'] != 'system' %}}{{{{ {system} }}}}{{% endif %}}"
        + "{{ messages | map(attribute='content') | join('\\n\\n') }}"
        + f"{{{{ {json.dumps(after)} }}}}"
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
