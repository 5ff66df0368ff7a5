"""The tokenizer of a GGUF file, with the ids that the file itself gives its tokens.

transformers (5.23) reads the file and builds a tokenizer of its own classes. Put right here is what those bring along
or take for granted:

- markers with characters outside the byte alphabet (DeepSeek's U+FF5C and U+2581) are spelled as bytes and no special
  tokens any more, and where they begin or end a text they get new ids, beyond the embedding;
- classes add the tokens that they are used to have (``<|endoftext|>``, ``<s>``), again beyond the embedding;
- a ``tokenizer.ggml.pre`` that is not among its two dozen silently becomes GPT-2's pattern.

What the values of ``pre`` mean is llama.cpp's to say, whose converter writes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from uld_ds.tokenization.notices import leave_notice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Kinds of tokens, in ``tokenizer.ggml.token_type``.
_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")

# Values of ``tokenizer.ggml.pre`` for which GPT-2's own pattern is the right one.
_AS_GPT2 = {
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum"),
    *("modern-bert", "roberta-bpe", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code"),
}
# Every digit by itself, then GPT-2's pattern.
_DIGITS_THEN_GPT2 = {"starcoder", "refact", "command-r", "smollm", "codeshell", "minerva-7b"}
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# Those whose words stand whole, where they are in the vocabulary, whatever the merges make of them.
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3"}


def save_gguf_tokenizer(file: Path, folder: Path) -> None:
    """Save the tokenizer of a GGUF file into a folder, with a notice where its way to split a text is not known.

    Args:
        file: the GGUF file.
        folder: folder to save it in.

    Raises:
        Exception: whatever transformers runs into; a ValueError where ids would not be the file's.
    """
    from transformers.integrations.gguf import get_gguf_tokenizer

    architecture, facts, options = get_gguf_tokenizer(str(file))
    _built(architecture, facts, options).save_pretrained(folder)
    if facts.get("tokenizer_type") == "gpt2" and not _is_known(facts.get("pre_tokenizer_type")):
        pre = facts.get("pre_tokenizer_type")
        has = "no tokenizer.ggml.pre" if pre is None else f"tokenizer.ggml.pre {pre!r}, which is not known"
        leave_notice(
            folder,
            f"{file.name} has {has}: text is split with GPT-2's pattern, and may become other tokens than the model "
            "was trained with; compare with the tokenizer of the original checkpoint",
        )


def _is_known(pre: str | None) -> bool:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return pre in GGUF_PRE_TOKENIZER_SPLITS or pre in {*_AS_GPT2, *_DIGITS_THEN_GPT2, "deepseek-v3"}


def _built(architecture: str, facts: dict[str, Any], options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Build the tokenizer that a file describes.

    Args:
        architecture: ``general.architecture``.
        facts: what the file says of its vocabulary, in transformers' names.
        options: template, special tokens and what is added around a text.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer

    backend, _ = convert_gguf_tokenizer(architecture, facts)
    description = json.loads(backend.to_str())
    tokens: list[str] = facts["tokens"]
    special = {index for name in _SPECIAL if (index := facts.get(f"{name}_id")) is not None}
    kinds = facts.get("token_type") or [1] * len(tokens)
    control = {index for index, kind in enumerate(kinds) if kind == _CONTROL} | special
    whole = control | {index for index, kind in enumerate(kinds) if kind == _USER_DEFINED}
    if facts.get("tokenizer_type") == "gpt2":
        description["pre_tokenizer"] = _split(facts.get("pre_tokenizer_type"), description["pre_tokenizer"])
        description["model"]["ignore_merges"] = facts.get("pre_tokenizer_type") in _WHOLE_WORDS
        _spell_whole(description["model"], tokens, whole)
    description["added_tokens"] = _added_tokens(description, tokens, control, whole)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)), **options)
    _check_ids(tokenizer, tokens, {name: facts[f"{name}_id"] for name in _SPECIAL if f"{name}_id" in facts})
    return tokenizer


def _split(pre: str | None, usual: dict[str, Any]) -> dict[str, Any]:
    """Describe the pre-tokenizer of a value of ``tokenizer.ggml.pre``; ``usual`` is what transformers takes."""
    if pre in _DIGITS_THEN_GPT2:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre == "deepseek-v3":
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _DEEPSEEK_V3]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    else:
        return usual
    described: dict[str, Any] = json.loads(pre_tokenizers.Sequence(steps).__getstate__())
    return described


def _spell_whole(model: dict[str, Any], tokens: Sequence[str], whole: set[int]) -> None:
    """Write the tokens that are looked for in the text as text, not as the bytes that transformers makes of some."""
    spelled = {index: token for token, index in model["vocab"].items()}
    in_merges = {"".join(pair) for pair in model["merges"]} | {part for pair in model["merges"] for part in pair}
    for index in sorted(whole):
        text = spelled.get(index)
        if text != tokens[index] and text not in in_merges and tokens[index] not in model["vocab"]:
            model["vocab"].pop(text, None)
            model["vocab"][tokens[index]] = index


def _added_tokens(
    description: dict[str, Any], tokens: Sequence[str], control: set[int], whole: set[int]
) -> list[dict[str, Any]]:
    """List the tokens that are looked for in the text: the file's, and of a class's own only those that it has."""
    vocab = description["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {entry[0]: index for index, entry in enumerate(vocab)}
    texts = {index: text for text, index in ids.items()}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {entry["id"]: entry for entry in description["added_tokens"]}
    for index in whole:
        # A class may have a name of its own for a token (T5's blanks).
        added[index] = (
            plain
            | added.get(index, {})
            | {
                "id": index,
                "content": texts.get(index, tokens[index]),
                "special": index in control,
            }
        )
    return [added[index] for index in sorted(added) if ids.get(added[index]["content"]) == index]


def _check_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], special: dict[str, int]) -> None:
    """Check that no id is beyond the file's, and that the special ones are where the file has them.

    Raises:
        ValueError: one is not.
    """
    beyond = {text: index for text, index in tokenizer.get_vocab().items() if index >= len(tokens)}
    if beyond:
        text, index = next(iter(beyond.items()))
        raise ValueError(f"token {text!r} would get id {index}, and the file has {len(tokens)} tokens")
    for name, index in special.items():
        found: Any = tokenizer.convert_tokens_to_ids(getattr(tokenizer, name))
        if found != index and tokens[found] != tokens[index]:
            raise ValueError(f"{name} {getattr(tokenizer, name)!r} has id {found}, not the file's {index}")
