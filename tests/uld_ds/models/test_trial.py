"""What is tried before a run is the model that its files make, not the one that its configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.helpers.tiny import save_tiny_model, save_with_own_head
from uld_ds.errors import UserError
from uld_ds.models.trial import try_student, with_own_head
from uld_ds.recipe import LoraSettings, StudentSettings


def test_a_head_of_its_own_is_tried_as_one(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    tied = save_tiny_model(tmp_path / "tied", rows, kind="unigram", vocab_size=300, seed=2, tied=True)
    own = save_with_own_head(tied, tmp_path / "own")
    kept = {}
    for folder in (tied, own):
        config = AutoConfig.from_pretrained(folder)
        assert config.tie_word_embeddings is True
        kept[folder] = with_own_head(config, folder, "student.model")
        assert config.tie_word_embeddings is True
    assert (kept[tied].tie_word_embeddings, kept[own].tie_word_embeddings) == (True, False)
    settings = StudentSettings(model=str(own), lora=LoraSettings(targets=["lm_head"], rank=2))
    trial = try_student(kept[own], settings, "own")
    assert trial.adapters is not None and trial.adapters.startswith("adapters for 1 linear layers (lm_head); none for ")
    with pytest.raises(UserError, match="the output head is one matrix with the embeddings"):
        try_student(kept[tied], settings, "tied")
    plain = StudentSettings(model=str(own))
    sizes = [sum(p.numel() for p in try_student(kept[folder], plain, "").model.parameters()) for folder in (tied, own)]
    assert sizes[1] - sizes[0] == kept[own].vocab_size * kept[own].hidden_size
    trial = try_student(kept[own], plain, "")
    assert (trial.weight_bytes("fp32"), trial.weight_bytes("bf16")) == (4 * sizes[1], 2 * sizes[1])
