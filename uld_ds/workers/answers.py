"""The Ray Data actor that answers prompts, and the writing of answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from uld_ds.data.templates import ReplyReader
from uld_ds.generation.answers import write_part
from uld_ds.generation.decoding import Answer, Decoding, Model, read_reply
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.teacher_precision import precision_here
from uld_ds.recipe import TeacherDType
from uld_ds.workers.process import configure_process


class Answerer:
    """A model in a Ray Data actor that answers batches of prompts and writes each batch's answers at once.

    Answers survive whatever happens next.

    Args:
        model: the model to ask.
        precision: type of its weights.
        decoding: fields of ``Decoding`` as plain values.
        ends: token ids that end an answer.
        reader: reader of what the model generates.
        parts: folder of the written answers.
        logs: folder of the log files.
        on_gpu: whether this actor has a GPU.
        threads: threads of torch.
    """

    def __init__(
        self,
        *,
        model: Pretrained,
        precision: TeacherDType,
        decoding: dict[str, Any],
        ends: tuple[int, ...],
        reader: ReplyReader,
        parts: str,
        logs: str,
        on_gpu: bool,
        threads: int,
    ) -> None:
        configure_process(Path(logs), os.getpid(), threads)
        device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        held = precision_here(precision, on_gpu=on_gpu)
        self._model = Model(model, held, device, ends=ends, reader=reader)
        self._decoding = Decoding(**{**decoding, "stop": tuple(decoding["stop"])})
        self._parts = Path(parts)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a table of ``id`` and ``prompt_ids`` (tokens); return how many prompts and answer tokens that was."""
        ids = batch["id"].to_pylist()
        answers = self._model.answer(batch["prompt_ids"].to_pylist(), self._decoding, ids)
        write_part(self._parts, ids, answers)
        return pa.table({"prompts": [len(ids)], "tokens": [sum(answer.tokens for answer in answers)]})


def write_engine_rows(
    batch: pa.Table,
    *,
    parts: str,
    max_new_tokens: int,
    reader: ReplyReader,
    stop: tuple[str, ...],
    prompt_ends: Mapping[str, str],
) -> pa.Table:
    """Write rows that an engine of Ray's own has answered; return how many prompts and answer tokens that was.

    The engine does not say why an answer ended: one of full length counts as cut off.

    Args:
        batch: table of ``id``, ``generated_text`` and ``num_generated_tokens``.
        parts: folder of the written answers.
        max_new_tokens: full length of an answer in tokens.
        reader: reader of what the model generates.
        stop: texts before the first of which an answer ends.
        prompt_ends: ends of the prompts that begin the reasoning, by id.
    """
    ids = batch["id"].to_pylist()
    texts, counts = batch["generated_text"].to_pylist(), batch["num_generated_tokens"].to_pylist()
    # Where a template knows reasoning, the engine is given no stops, and leaves control tokens in the text.
    answers = [
        read_reply(reader, text, stop, count, prompt=prompt_ends.get(name, ""), is_whole=count < max_new_tokens)
        if reader.may_think or reader.is_marked(text)
        else Answer(text.strip(), count, "length" if count >= max_new_tokens else "stop")
        for name, text, count in zip(ids, texts, counts, strict=True)
    ]
    write_part(Path(parts), ids, answers)
    return pa.table({"prompts": [len(ids)], "tokens": [sum(answer.tokens for answer in answers)]})
