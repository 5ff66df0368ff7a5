"""What runs in each Ray Data actor while a teacher answers prompts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from uld_ds.generation.answers import write_part
from uld_ds.generation.decoding import Answer, Decoding, Model
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import DType
from uld_ds.workers.process import configure_process


class Answerer:
    """Answers batches and writes each down at once: what was answered survives whatever happens next."""

    def __init__(
        self,
        *,
        model: Pretrained,
        precision: DType,
        decoding: dict[str, Any],
        parts: str,
        logs: str,
        on_gpu: bool,
        threads: int,
    ) -> None:
        configure_process(Path(logs), os.getpid(), threads)
        device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        self._model = Model(model, precision, device)
        self._decoding = Decoding(**{**decoding, "stop": tuple(decoding["stop"])})
        self._parts = Path(parts)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A table of ``id`` and ``prompt_ids`` (tokens); returns how many prompts and tokens that was."""
        ids = batch["id"].to_pylist()
        answers = self._model.answer(batch["prompt_ids"].to_pylist(), self._decoding, ids)
        write_part(self._parts, ids, answers)
        return pa.table({"prompts": [len(ids)], "tokens": [sum(answer.tokens for answer in answers)]})


def write_engine_rows(batch: pa.Table, *, parts: str, max_new_tokens: int) -> pa.Table:
    """The same for rows that an engine of Ray's own has answered.

    It does not say why an answer ended: one of full length counts as cut off.
    """
    ids = batch["id"].to_pylist()
    rows = zip(batch["generated_text"].to_pylist(), batch["num_generated_tokens"].to_pylist(), strict=True)
    answers = [Answer(text.strip(), count, "length" if count >= max_new_tokens else "stop") for text, count in rows]
    write_part(Path(parts), ids, answers)
    return pa.table({"prompts": [len(ids)], "tokens": [sum(answer.tokens for answer in answers)]})
