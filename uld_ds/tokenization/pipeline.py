"""What a tokenizer does with a text, step by step, and where two tokenizers differ in it.

transformers 5 makes the tokenizers of most classes (``Qwen2Tokenizer``, ``GPT2Tokenizer``, ``LlamaTokenizer``) anew
out of the vocabulary in ``tokenizer.json``, with the normalizer, pre-tokenizer and decoder that the class has by heart.
That is the file's own pipeline for the checkpoints that the class was written for, and another one for any other file,
also where the class was picked by ``model_type`` alone (qwen2 and qwen3_5 in 5.23).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

STEPS = ("normalizer", "pre_tokenizer", "model", "decoder")
"""Parts of a tokenizer that decide how text becomes tokens, and tokens text."""
_LISTS = ("normalizers", "pretokenizers", "decoders")


def differences(own: Tokenizer, made: Tokenizer, named: Collection[str] = ()) -> list[str]:
    """List what a tokenizer does otherwise than the file that it was made from.

    Args:
        own: tokenizer as its file has it.
        made: tokenizer that was made of that file.
        named: tokens that other files beside it add (``tokenizer_config.json``).

    Returns:
        The names of the parts that differ, with what differs in them; nothing where text becomes the same ids.
    """
    first, second = json.loads(own.to_str()), json.loads(made.to_str())
    found = [
        step.replace("_", "-")
        for step in STEPS
        if step != "model" and _steps(first[step], step) != _steps(second[step], step)
    ]
    models = [_model(description) for description in (first, second)]
    keys = [key for key in sorted(set(models[0]) | set(models[1])) if models[0].get(key) != models[1].get(key)]
    if models[0]["type"] != models[1]["type"]:
        found.append(f"model {models[1]['type']} for {models[0]['type']}")
    elif keys:
        found.append(f"model's {', '.join(keys)}")
    return found + _added(first, second, own, named)


def _steps(part: dict[str, Any] | None, kind: str) -> list[dict[str, Any]]:
    """Flatten a part into its steps, without the options that have no effect there."""
    if part is None:
        return []
    for key in _LISTS:
        if part["type"] == "Sequence" and key in part:
            return [step for item in part[key] for step in _steps(item, kind)]
    if kind == "decoder" and part["type"] == "ByteLevel":
        return [{"type": "ByteLevel"}]  # its options are the pre-tokenizer's
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _model(description: dict[str, Any]) -> dict[str, Any]:
    """Take the model's settings that have an effect: no empty ones, and none for unknown bytes where all are known."""
    model = {
        key: value for key, value in description["model"].items() if value not in (None, "", False) or key == "unk_id"
    }
    steps = [step["type"] for part in ("normalizer", "pre_tokenizer") for step in _steps(description[part], part)]
    if (
        "ByteLevel" in steps
        and model["type"] == "BPE"
        and set(pre_tokenizers.ByteLevel.alphabet()) <= set(model["vocab"])
    ):
        model = {key: value for key, value in model.items() if key not in ("unk_token", "fuse_unk", "byte_fallback")}
    return model


def _added(first: dict[str, Any], second: dict[str, Any], own: Tokenizer, named: Collection[str]) -> list[str]:
    """List added tokens that were lost, have other ids, or that no file has."""
    before, after = (
        {token["content"]: token["id"] for token in description["added_tokens"]} for description in (first, second)
    )
    lost = sorted(text for text, index in before.items() if after.get(text) != index)
    gained = sorted(text for text in after.keys() - before.keys() - set(named) if own.token_to_id(text) is None)
    return [f"{what} {' '.join(texts[:3])}" for what, texts in (("without", lost), ("added", gained)) if texts]
