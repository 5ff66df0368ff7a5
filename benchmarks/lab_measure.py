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


def right_answers(row: Row) -> list[str]:
    """All of a problem: the one that is told, then those beside it, if it has any."""
    return [row["answer"], *row["also"].split("|")] if row.get("also") else [row["answer"]]


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


Batches = list[tuple[list[int], dict[str, torch.Tensor]]]


class Held:
    """Held-out problems, encoded once for a model that is measured again and again."""

    def __init__(self, tokenizer: Any, rows: Sequence[Row]) -> None:
        self.told = _batches(tokenizer, list(enumerate(rows)))
        others = [
            (number, {**row, "answer": answer}) for number, row in enumerate(rows) for answer in right_answers(row)[1:]
        ]
        self.others = _batches(tokenizer, others)
        self.rows = len(rows)
        self.bytes = sum(len(row["answer"].encode()) for row in rows)

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, float]:
        """Share of problems with a right answer whose every token, the end included, is the most likely one after those
        before it, and bits per byte of the right answers that are told. The first is what greedy decoding solves,
        spelled as the tokenizer spells."""
        solved: set[int] = set()
        nats, was_training = 0.0, model.training
        model.eval()
        for numbers, batch in self.told:
            logits, labels = _predicted(model, batch)
            solved.update(_followed(numbers, logits, labels))
            nats += float(cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        for numbers, batch in self.others:
            solved.update(_followed(numbers, *_predicted(model, batch)))
        model.train(was_training)
        return {"solved": len(solved) / self.rows, "bits": nats / math.log(2) / self.bytes}


def _batches(tokenizer: Any, rows: Sequence[tuple[int, Row]]) -> Batches:
    """Of rows and the numbers of their problems, those of one length beside each other."""
    encoded = [(number, (prompt_ids(tokenizer, row), answer_ids(tokenizer, row))) for number, row in rows]
    encoded.sort(key=lambda example: len(example[1][0]) + len(example[1][1]))
    batches = []
    for start in range(0, len(encoded), PER_FORWARD):
        numbers, examples = zip(*encoded[start : start + PER_FORWARD], strict=True)
        batches.append((list(numbers), padded(examples, tokenizer.pad_token_id)))
    return batches


def _predicted(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the tokens after the first [B, L - 1, V], and what they should be."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return logits, batch["labels"][:, 1:]


def _followed(numbers: Sequence[int], logits: torch.Tensor, labels: torch.Tensor) -> set[int]:
    """Numbers of the rows whose answer is the greedy one."""
    whole = ((logits.argmax(-1) == labels) | (labels == -100)).all(1)
    return {number for number, is_whole in zip(numbers, whole.tolist(), strict=True) if is_whole}


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
