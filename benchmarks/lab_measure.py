"""What both sides of lab.py measure with, the product's and TRL's: torch and a tokenizer, nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

Row = dict[str, str]
Encoded = tuple[list[int], list[int]]
PER_FORWARD = 250


def prompt_ids(tokenizer: Any, row: Row) -> list[int]:
    """The tokens before the answer, as its chat template writes them."""
    messages = [{"role": "user", "content": row["prompt"]}]
    text: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: Any, row: Row) -> list[int]:
    """The tokens of the answer, its end included."""
    return [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def padded(examples: Sequence[Encoded], padding: int) -> dict[str, torch.Tensor]:
    """Prompts and answers as a batch [B, L]; only answers have labels."""
    longest = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.full((len(examples), longest), padding)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(examples):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class Held:
    """Held-out problems, encoded once for a model that is measured again and again."""

    def __init__(self, tokenizer: Any, rows: Sequence[Row]) -> None:
        encoded = [(prompt_ids(tokenizer, row), answer_ids(tokenizer, row)) for row in rows]
        encoded.sort(key=lambda example: len(example[0]) + len(example[1]))
        self.batches = [
            padded(encoded[start : start + PER_FORWARD], tokenizer.pad_token_id)
            for start in range(0, len(encoded), PER_FORWARD)
        ]
        self.rows = len(rows)
        self.bytes = sum(len(row["answer"].encode()) for row in rows)

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, float]:
        """Share of right answers whose every token, the end included, is the most likely one after those before it, and
        bits per byte of right answers. The first is what greedy decoding solves, spelled as the tokenizer spells."""
        solved, nats, was_training = 0, 0.0, model.training
        model.eval()
        for batch in self.batches:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            solved += int(((logits.argmax(-1) == labels) | (labels == -100)).all(1).sum())
            nats += float(cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        model.train(was_training)
        return {"solved": solved / self.rows, "bits": nats / math.log(2) / self.bytes}


class Curve:
    """What is measured while a student trains: after which steps, and the student tokens until then."""

    def __init__(self, held: Held, model: Callable[[], Any], steps: int, points: int) -> None:
        self.held, self.model = held, model
        self.at = {round(steps * (number + 1) / points) for number in range(points)}
        self.found: list[dict[str, float]] = []

    def take(self, step: int, tokens: float) -> None:
        """Measure, if it is time to."""
        if step == 0 or step in self.at:
            self.found.append({"step": step, "tokens": tokens, **self.held.measure(self.model())})
