"""A small engine for actors that score texts: a transformers model, text by text."""

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
class ModelScorer:
    """Scores each text alone, and notes what it was asked in a file: one line for each call, with its process."""

    folder: str
    journal: str
    top: int = 8
    seconds: float = 0.0
    """That each call takes longer."""
    version: str = "1.2.3"
    lm: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.lm = AutoModelForCausalLM.from_pretrained(self.folder).eval()

    @torch.no_grad()
    def score(self, texts: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        with Path(self.journal).open("a") as file:
            file.write(" ".join(map(str, [os.getpid(), *(len(ids) for ids, _ in texts)])) + "\n")
        time.sleep(self.seconds)
        return [
            self._scored(torch.from_numpy(ids).long(), torch.from_numpy(positions).long()) for ids, positions in texts
        ]

    def _scored(self, ids: torch.Tensor, positions: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        of_all = self.lm(ids[None]).logits[0].log_softmax(-1)[positions - 1]
        values, found = of_all.topk(self.top)
        right = of_all.gather(1, ids[positions][:, None])[:, 0]
        return right.numpy(), found.numpy().astype(np.int32), values.numpy()
