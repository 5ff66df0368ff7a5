"""Models whose numbers are not finite where one token is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from uld_ds.runs.job import Job


def rare_token(job: Job, side: str) -> tuple[int, int]:
    """A token that one example alone has, and that example."""
    ids = job.split("train").rows[f"{side}_ids"][:]
    counts = Counter(token for row in ids for token in set(row))
    rare = {token for token, count in counts.items() if count == 1}
    example = next(i for i, row in enumerate(ids) if rare & set(row))
    return min(rare & set(ids[example])), example


def break_token(model: str, token: int, target: Path) -> None:
    """A copy of a model in which that token's embedding is infinite, with its tokenizer."""
    lm = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        lm.get_input_embeddings().weight[token] = float("inf")
    lm.save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)
