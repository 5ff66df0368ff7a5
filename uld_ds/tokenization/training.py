"""Training of a small tokenizer on the training text, for students that bring none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from uld_ds.errors import UserError

END_OF_TURN = "<|end|>"
PADDING = "<|pad|>"
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(kind: Literal["unigram", "bpe"], vocab_size: int, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Train a lossless tokenizer over bytes with a minimal chat template.

    Both kinds work on byte-level pieces, so every text has an encoding and comes back byte for byte: bits per
    byte would mean nothing otherwise.

    Args:
        kind: ``unigram`` or ``bpe``.
        vocab_size: entries, the 256 bytes and five special tokens included.
        texts: what to learn the pieces from.

    Raises:
        UserError: there is no text.
    """
    texts = iter(texts)
    first = next(filter(None, texts), None)
    if first is None:
        raise UserError("student.tokenizer", "no row of data.train has text to train it on", "correct the data")
    special = [PADDING, END_OF_TURN, *(f"<|{role}|>" for role in ROLES)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model, new_trainer = {
        "unigram": (models.Unigram(), trainers.UnigramTrainer),
        "bpe": (models.BPE(), trainers.BpeTrainer),
    }[kind]
    trainer = new_trainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(itertools.chain([first], texts), trainer)
    if kind == "unigram":
        tokenizer.model = models.Unigram(_in_order(tokenizer, len(special)), None, False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PADDING,
        eos_token=END_OF_TURN,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _in_order(tokenizer: Tokenizer, num_special: int) -> list[tuple[str, float]]:
    """Order the vocabulary of a trained Unigram model, so that the same text gives the same one.

    The trainer's scores differ in the 14th digit from run to run, and so does the order of equal ones. Bytes that
    the text lacks get scores from the lowest one upwards, in steps of 0.0001 and in any order.
    """
    vocab = [(piece, float(score)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    special, learned = vocab[:num_special], dict(vocab[num_special:])
    lowest = min(learned.values())
    steps = {piece: (score - lowest) * 1e4 for piece, score in learned.items() if len(piece) == 1}
    lacking = sorted(piece for piece, step in steps.items() if abs(step - round(step)) < 1e-6)
    learned |= zip(lacking, sorted((learned[piece] for piece in lacking), reverse=True), strict=True)
    rounded = ((piece, round(score, 6)) for piece, score in learned.items())
    return [*special, *sorted(rounded, key=lambda item: (-item[1], item[0]))]
