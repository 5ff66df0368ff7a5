"""A small engine for actors of rollouts: a transformers model that samples token by token, without a cache."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM


@dataclass
class SlowSampler:
    """Answers each prompt alone, and notes what it did in a file: one line for each call, with its process."""

    journal: str
    tokens: int = 6
    ends: tuple[int, ...] = ()
    seconds: float = 0.0
    """That each batch takes longer."""
    lm: Any = field(default=None, init=False)

    def load(self, folder: str) -> None:
        self._note("load", Path(folder).name)
        self.lm = AutoModelForCausalLM.from_pretrained(folder).eval()

    def sample(self, prompts: Sequence[tuple[int, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        self._note("begin", len(prompts))
        time.sleep(self.seconds)
        answers = [self._answer(*prompt) for prompt in prompts]
        self._note("end", len(prompts))
        return answers

    @torch.no_grad()
    def _answer(self, seed: int, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        draws, ids, log_probs = np.random.default_rng(seed), prompt.tolist(), []
        while len(log_probs) < self.tokens and (not log_probs or ids[-1] not in self.ends):
            of_all = self.lm(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()
            token = min(int(np.searchsorted(np.exp(of_all).cumsum(), draws.random(), side="right")), len(of_all) - 1)
            ids.append(token)
            log_probs.append(of_all[token])
        new = np.asarray(ids[len(prompt) :], np.int32)
        return new, np.asarray(log_probs, np.float32), bool(new[-1] in self.ends)

    def _note(self, *words: Any) -> None:
        with Path(self.journal).open("a") as file:
            file.write(" ".join(map(str, [os.getpid(), *words])) + "\n")


def noted(journal: Path) -> list[list[str]]:
    """The lines of all calls, each as its words."""
    return [line.split() for line in journal.read_text().splitlines()]
