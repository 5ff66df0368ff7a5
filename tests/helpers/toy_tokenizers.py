"""Tokenizers whose every merge is known, for cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TRIMMING_TEMPLATE = CHAT_TEMPLATE.replace("m['content']", "m['content'] | trim")
SPECIAL = ["<s>", "</s>", "<user>", "<assistant>", "<system>"]


def toy(
    *merged: str, bos: bool = False, eos: bool = True, adds_bos: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Every byte is a token, and so is each text in ``merged`` (of ASCII letters), wherever it stands.

    Args:
        adds_bos: the tokenizer itself puts ``<s>`` before a text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = list(alphabet), []
    for text in merged:
        for length in range(2, len(text) + 1):
            if text[:length] not in pieces:
                pieces.append(text[:length])
                merges.append((text[: length - 1], text[length - 1]))
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def texts(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[str]:
    """Each token as text."""
    return [tokenizer.decode([int(i)]) for i in ids]
