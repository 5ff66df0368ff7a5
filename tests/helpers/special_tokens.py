"""Tiny models whose tokenizers differ in what they add to a text, and the likelihood of a text in float64."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from tests.helpers.tiny import SIZES
from uld_ds.models.pretrained import Pretrained

TEXTS = ["Return the sum of two numbers.", "Schließt die Datei, wenn sie offen ist."]


class Habit(NamedTuple):
    """What a tokenizer does: the template of its special tokens, and what stands before a text that is scored."""

    template: str
    special: dict[str, str]
    before: str
    """Token that the first one of a text is predicted from."""
    leading: list[str]
    """Tokens before a context."""


BOS = {"bos_token": "<s>", "eos_token": "</s>"}
HABITS = {
    "adds BOS": Habit("<s> $A", BOS, "<s>", ["<s>"]),
    "has BOS, adds none": Habit("$A", BOS, "<s>", []),
    "has none": Habit("$A", {"eos_token": "</s>"}, "</s>", []),
    "adds EOS": Habit("$A </s>", BOS, "<s>", []),
    "adds both": Habit("<s> $A </s>", BOS, "<s>", ["<s>"]),
    "adds others": Habit("[CLS] $A [SEP]", {"cls_token": "[CLS]", "sep_token": "[SEP]"}, "[CLS]", ["[CLS]"]),
}


def save_model(folder: Path, habit: Habit) -> Path:
    special = ["<s>", "</s>", "<pad>", "[CLS]", "[SEP]"]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    plain.train_from_iterator(TEXTS, trainer)
    ids = [(token, plain.token_to_id(token)) for token in special]
    plain.post_processor = processors.TemplateProcessing(single=habit.template, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", **habit.special)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **SIZES)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def log_likelihood(folder: Path, before: list[str], text: str) -> float:
    """In float64, of the tokens of ``text`` alone, each after all that stand before it."""
    tokenizer = Pretrained(str(folder)).tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = torch.tensor([tokenizer.convert_tokens_to_ids(before) + ids])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        log_probs = model(whole).logits[0].log_softmax(-1)
    return sum(float(log_probs[-len(ids) - 1 + n, token]) for n, token in enumerate(ids))
