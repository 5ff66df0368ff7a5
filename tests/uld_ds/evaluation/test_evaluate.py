"""Bits per byte of a model that is evaluated, against float64 by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.helpers.special_tokens import HABITS, TEXTS, log_likelihood, save_model
from uld_ds.data.examples import ExampleReader
from uld_ds.data.sides import TextSide
from uld_ds.evaluation.evaluate import bits_per_byte_of
from uld_ds.generation.decoding import Model
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import DataSettings, FilesSource, ModelSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", HABITS)
def test_bits_are_those_of_the_answers_bytes_whatever_a_tokenizer_adds(name: str, tmp_path: Path) -> None:
    """One start is context, and neither it nor an end is scored; also where nothing else stands before an answer."""
    habit = HABITS[name]
    folder = save_model(tmp_path, habit)
    settings = ModelSettings(model=str(folder), precision="fp32", prompt_template="{prompt}")
    model = Pretrained(str(folder))
    side = TextSide.of_model(model, settings, "student")
    reader = ExampleReader(DataSettings(train=FilesSource(source="files", path="x.jsonl")))
    before = {"What?": habit.leading, "": [habit.before]}
    tokens = Pretrained(str(folder)).tokenizer().tokenize("What?")
    for prompt, leading in before.items():
        rows = Dataset.from_list([{"prompt": prompt, "answer": text} for text in TEXTS])
        found = bits_per_byte_of(Model(model, "fp32", CPU), side, rows, reader, batch_tokens=256, device=CPU)
        assert found is not None
        context = [*leading, *(tokens if prompt else [])]
        nats = -sum(log_likelihood(folder, context, text) for text in TEXTS)
        size = sum(len(text.encode()) for text in TEXTS)
        assert (found.examples, found.answer_bytes) == (2, size)
        assert found.mean == pytest.approx(nats / math.log(2) / size, rel=1e-5), prompt
