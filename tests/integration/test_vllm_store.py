"""A store that vLLM builds in Ray's actors, against the store of the same weights in the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.store_command import built_store
from tests.helpers.tiny import save_tiny_model
from tests.helpers.vllm_python import vllm_python
from uld_ds.teachers.store.reader import SpectrumStore

# Sizes that the attention kernels of vLLM's build for CPUs know.
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
TOP, TOP_IDS = 48, 16


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_store_by_vllm_holds_what_the_workers_compute(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    python = vllm_python()
    teacher = save_tiny_model(tmp_path / "t", rows, kind="bpe", vocab_size=500, seed=1, **SIZES)
    tiny_recipe["teacher"] |= {"model": str(teacher), "precision": "fp32"}
    tiny_recipe["cluster"] |= {"workers": 1}
    tiny_recipe["store"] = {"top_ids": TOP_IDS}
    own = built_store(tiny_recipe, tmp_path / "own")
    tiny_recipe["store"] |= {"top": TOP, "actors": {"python": python}}
    facts = built_store(tiny_recipe, tmp_path / "vllm", "--engine", "vllm")
    assert {key: facts[key] for key in ("examples", "teacher_tokens", "data_digest")} == {
        key: own[key] for key in ("examples", "teacher_tokens", "data_digest")
    }
    stores = [SpectrumStore.open(str(tmp_path / name), with_top=True) for name in ("own", "vllm")]
    assert len(stores[0]) == facts["examples"] > 10
    for mine, theirs in zip(*(store.read(list(range(len(store)))) for store in stores), strict=True):
        expected, found = mine.tokens, theirs.tokens
        torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-3, rtol=0)
        assert expected.top is not None and found.top is not None
        assert np.mean((found.top.ids == expected.top.ids).numpy()) > 0.99, "but for ties"
        torch.testing.assert_close(found.top.log_probs, expected.top.log_probs, atol=2e-2, rtol=1e-2)
        unknown = found.spectrum.unknown_mass
        assert unknown is not None
        whole = expected.spectrum.to_probabilities(500)
        torch.testing.assert_close(unknown, whole[:, TOP:].sum(1), atol=2e-3, rtol=0)
