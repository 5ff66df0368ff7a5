"""A small student that thinks, calls tools, and ends its turns with other tokens than its tokenizer's end of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from tests.helpers.talks import WEATHER, call, said, user
from tests.helpers.tiny import SIZES
from tests.helpers.toy_tokenizers import toy

ENDS = ["</s>", "<s>", "<end>", "<called>"]
# The folder itself names </s> and <s>.
# <end> ends a turn, <called> one that calls a tool; without thinking, a prompt closes the reasoning itself.
TEMPLATE = (
    "{% for t in tools or [] %}{{ '[' + t.function.name + ']' }}{% endfor %}"
    "{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if m.role == 'assistant' %}{% if m.reasoning_content %}{{ '<r>' + m.reasoning_content + '</r>' }}"
    "{% elif not thinking %}{{ '<r></r>' }}{% endif %}{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments | tojson + '</c>' }}{% endfor %}"
    "{{ '<called>' if m.tool_calls else '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' + ('<r>' if thinking else '<r></r>') }}{% endif %}"
)
QUESTION, REASONING, ANSWER = "2+2?", "so: two, two", "It is 4."
SYSTEM = "Hm."
TALKS: list[dict[str, Any]] = [
    {"messages": [user(QUESTION), said(ANSWER, reasoning_content=REASONING)]},
    {"messages": [user(QUESTION), said("four")], "chat_template_kwargs": {"thinking": False}},
    {
        "messages": [user("Rain?"), said(None, reasoning_content="look", tool_calls=[call({"city": "Rome"})])],
        "tools": [WEATHER],
    },
]
SETTINGS = {"template_arguments": {"thinking": True}, "system_prompt": SYSTEM, "max_length": 128}


def thinking_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = toy("two", "four", "get_weather", "city", "Rome", "look", bos=True, chat_template=TEMPLATE)
    tokenizer.add_tokens(["<end>"])  # not marked as special: decoding leaves it in the text
    marks = ["<called>", "<r>", "</r>", "</c>"]
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": marks})
    return tokenizer


def save_thinker(folder: Path) -> Path:
    """A random Llama with that tokenizer, whose generation configuration knows none of the ends of its turns."""
    tokenizer = thinking_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def thinker_recipe(folder: Path, model: Path, *, steps: int) -> dict[str, Any]:
    """A recipe by which the model learns TALKS by heart."""
    for name, rows in {"train": TALKS, "eval": TALKS[:2]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    side = {"model": str(model), "precision": "fp32", **SETTINGS}
    return {
        "run": {"name": "thinker", "storage": str(folder / "runs")},
        "teacher": side,
        "student": side,
        "data": {
            "task": "messages",
            "train": {"source": "files", "path": str(folder / "train.jsonl")},
            "eval": {"source": "files", "path": str(folder / "eval.jsonl")},
        },
        "objective": {"ce": 1.0, "uld": 0.0},
        "training": {"steps": steps, "batch_size": 3, "micro_batch_size": 3, "optimizer": {"learning_rate": 1e-2}},
        "evaluation": {"sample_tokens": 32},
        "generation": {"max_new_tokens": 32, "held_out": 0.0},
        "cluster": {"workers": 1, "accelerator": "cpu"},
        "tracking": {"system_metrics": False},
    }
