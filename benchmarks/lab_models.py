"""Models of lab.py: small Llamas, a teacher trained on many right answers, and how often one is right."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lab_measure import Row, answer_ids, padded, prompt_ids
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from uld_ds.generation.decoding import Decoding, Model
from uld_ds.models.pretrained import Pretrained
from uld_ds.tokenization.training import train_tokenizer

SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128}
LEARNING_RATE, BETAS, WEIGHT_DECAY, WARMUP_STEPS, FINAL = 2e-3, (0.9, 0.98), 0.1, 50, 0.05


def new_model(folder: Path, rows: Sequence[Row], vocab_size: int, seed: int) -> None:
    """A Llama that knows nothing, with a byte-level BPE trained on ``rows``, in Hugging Face layout.

    Tokenizers of both sides are of one kind and have the same control tokens: TRL's teacher reads what the student's
    tokenizer decodes, and its extended mode knows byte-level BPE alone.
    """
    texts = (text for row in rows for text in row.values())
    tokenizer: Any = train_tokenizer("bpe", vocab_size, texts)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_plainly(
    source: Path, target: Path, rows: Sequence[Row], steps: int, batch_size: int, seed: int, *, ends: bool = True
) -> None:
    """Cross-entropy on right answers (with ``ends=False`` up to their end), and nothing else: how the teacher comes
    about."""
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    last = None if ends else -1
    encoded = [(prompt_ids(tokenizer, row), answer_ids(tokenizer, row)[:last]) for row in rows]
    order, draw = [], random.Random(seed)  # noqa: S311 (no secret)
    for step in range(steps):
        while len(order) < batch_size:
            order += draw.sample(range(len(encoded)), len(encoded))
        chosen, order = [encoded[number] for number in order[:batch_size]], order[batch_size:]
        loss = model(**padded(chosen, tokenizer.pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"  teacher, step {step}/{steps}: {loss.item():.3f} nats per token", file=sys.stderr, flush=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def learning_rate_share(step: int, steps: int) -> float:
    """Of the peak: up in a line, then down along a cosine."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * done)) / 2


def answers(folder: Path, rows: Sequence[Row], max_new_tokens: int, *, per_batch: int = 250) -> list[str]:
    """A model's greedy answers to the prompts of ``rows``."""
    model = Model(Pretrained(str(folder)), "fp32", torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [prompt_ids(tokenizer, row) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: len(prompts[number]))
    said = [""] * len(rows)
    for start in range(0, len(order), per_batch):
        places = order[start : start + per_batch]
        found = model.answer([prompts[n] for n in places], Decoding(max_new_tokens), [str(n) for n in places])
        for place, answer in zip(places, found, strict=True):
            said[place] = answer.text
    return said
