"""Conversations, and what is stored of a teacher that was asked about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from uld_ds.data.examples import Example
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_rows import TeacherEncoding
from uld_ds.recipe import ModelSettings
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.store.manifest import CodecFacts, StoreIdentity
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.store.shard import StoredExample, spans_of
from uld_ds.teachers.store.writer import StoreWriter
from uld_ds.workers.store import pieces_of


def side(tokenizer: Any, max_length: int = 99, **settings: Any) -> TextSide:
    return TextSide(tokenizer, ModelSettings(model="x", max_length=max_length, **settings), "teacher")


def store_of(folder: Path, teacher: TextSide, examples: list[Example], turns: str = "all") -> SpectrumStore:
    """What is stored of a teacher; its words are noise, its tokens are real."""
    rows = TeacherEncoding(teacher, turns=turns)(examples)
    identity = StoreIdentity(
        teacher="t",
        tokenizer_digest="",
        prompt_template="chat",
        max_length=99,
        temperature=1.0,
        codec=CodecFacts.of(),
        data_digest="",
    )
    writer = StoreWriter(folder, identity, examples=len(examples), examples_per_shard=2)
    stored = []
    for number, row in enumerate(rows):
        assert isinstance(row, dict), row
        count = len(row["teacher_answers"])
        tokens = TeacherTokens(Spectrum.from_logits(torch.randn(count, 70)), torch.arange(count).float() - 1000)
        shape = row["turns"].reshape(-1, 3)
        spans = spans_of(shape, row["token_bytes"])
        stored.append(StoredExample(str(number), row["digest"], shape, spans, tokens, pieces=pieces_of(row)))
    for shard in range(writer.num_shards):
        writer.write_shard(shard, [stored[i] for i in writer.examples_of_shard(shard)])
    writer.finish()
    return SpectrumStore.open(folder)


def talk(*messages: str) -> Example:
    """User and assistant in turns."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(messages)]
    return Example(tuple(turns), tuple(range(1, len(turns), 2)))


TALKS = [
    talk("q", "abcab"),
    talk("q", " abc \n", "r", "déjà"),
    talk("question", "ab", "r", "bcbcabca"),
    talk("", "日本 cab", "x", " b", "y", "c\n"),
]
