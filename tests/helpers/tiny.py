"""Random models small enough for a test, saved where `from_pretrained` finds them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, T5Config, T5ForConditionalGeneration

from uld_ds.tokenization.training import train_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def save_tiny_model(
    folder: Path,
    rows: list[dict[str, str]],
    *,
    kind: Literal["bpe", "unigram"],
    vocab_size: int,
    seed: int,
    tied: bool = False,
    **options: Any,
) -> Path:
    """A Llama of some 50 thousand parameters with a tokenizer trained on ``rows``."""
    tokenizer = train_tokenizer(kind, vocab_size, (text for row in rows for text in row.values()))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.3,
        **SIZES | options,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_t5(folder: Path, tokenizer: Any, *, seed: int, tied: bool = True, **options: Any) -> Path:
    """A T5 of some 70 thousand parameters with a copy of a tokenizer that has padding and an end of text.

    ``tied`` is T5 as it was, with one matrix for embeddings and output head; otherwise as T5 1.1 and mT5 have it.
    """
    kind = {} if tied else {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    config = T5Config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        **{"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0} | kind | options,
    )
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    if not tied:
        # transformers ties new ones all the same; checkpoints that have two matrices keep them.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(len(tokenizer), config.d_model) / 4)
        model.all_tied_weights_keys.pop("lm_head.weight")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_with_own_head(source: Path, target: Path) -> Path:
    """A copy of a model that says its head is its embeddings, whose file holds another matrix for it.

    transformers writes such folders itself: a model that was resized, or loaded untied, and saved.
    """
    kind = T5ForConditionalGeneration if (source / "config.json").read_text().count("t5") else AutoModelForCausalLM
    model = kind.from_pretrained(source)
    head = model.get_output_embeddings()
    torch.manual_seed(7)
    head.weight = torch.nn.Parameter(torch.randn_like(head.weight) / 2)
    model.all_tied_weights_keys.pop("lm_head.weight", None)
    model.config.tie_word_embeddings = True
    shutil.copytree(source, target)
    model.save_pretrained(target)
    return target


def tiny_recipe_in(folder: Path, teacher: Path, student: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    """A complete recipe over tiny models: 48 rows to learn from, the rest held out, two workers, six steps."""
    for name, part in {"train": rows[:48], "eval": rows[48:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {
        "run": {"name": "tiny", "storage": str(folder / "runs")},
        "teacher": {"model": str(teacher), "precision": "fp32", "max_length": 256, "max_tokens_per_forward": 512},
        "student": {"model": str(student), "precision": "fp32", "max_length": 256},
        "data": {
            "train": {"source": "files", "path": str(folder / "train.jsonl")},
            "eval": {"source": "files", "path": str(folder / "eval.jsonl")},
        },
        "training": {
            "steps": 6,
            "batch_size": 8,
            "micro_batch_size": 2,
            "checkpoint_every": 3,
            "optimizer": {"learning_rate": 1e-2},
        },
        "evaluation": {"every": 3, "sample_tokens": 4},
        "cluster": {"workers": 2, "accelerator": "cpu"},
        "tracking": {"system_metrics": False},
        "registry": {"model_name": "tiny-student"},
    }
