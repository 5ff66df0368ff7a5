"""Generation options of checkpoints are written again, whatever transformers thinks of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from uld_ds.errors import UserError
from uld_ds.models.generation_options import writable
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.student import make_student
from uld_ds.recipe import ModelSettings, StudentSettings


def options(folder: Path, **given: Any) -> GenerationConfig:
    (folder / "generation_config.json").write_text(json.dumps(given))
    return GenerationConfig.from_pretrained(folder)


def written(folder: Path, config: GenerationConfig) -> dict[str, Any]:
    config.save_pretrained(folder / "again")
    found: dict[str, Any] = json.loads((folder / "again" / "generation_config.json").read_text())
    del found["transformers_version"]
    return found


def test_options_that_are_fine_are_left_alone(tmp_path: Path) -> None:
    config = options(tmp_path, do_sample=True, temperature=0.6, eos_token_id=[2, 3])
    assert writable(config) is config


def test_options_without_effect_stay_when_an_id_changes(tmp_path: Path) -> None:
    config = options(tmp_path, temperature=0.6, top_p=0.9, eos_token_id=2)
    config.eos_token_id = [7, 8]
    with pytest.raises(ValueError, match="do_sample"):
        config.save_pretrained(tmp_path)
    assert written(tmp_path, writable(config)) == {"temperature": 0.6, "top_p": 0.9, "eos_token_id": [7, 8]}


def test_a_student_with_another_tokenizer_is_made_of_such_a_checkpoint(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_teacher, base)
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 5}))
    settings = StudentSettings(model=str(base), tokenizer=str(tiny_student), embeddings="random", max_length=64)
    made = make_student(settings, list, 0, tmp_path / "made")
    config = AutoModelForCausalLM.from_pretrained(made).generation_config
    assert (config.temperature, config.top_k) == (0.6, 5)
    assert config.eos_token_id == AutoTokenizer.from_pretrained(tiny_student).eos_token_id


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"num_return_sequences": 2}', "Greedy methods (do_sample != True) without beam search do not support "),
        ('{"early_stopping": "x"}', "`early_stopping` must be a boolean or 'never', but is x."),
        ('["x"]', "TypeError: 'list' object is not a mapping"),
    ],
)
def test_options_that_transformers_refuses_are_told_before_anything_is_loaded(
    tmp_path: Path, tiny_student: Path, content: str, reason: str
) -> None:
    shutil.copytree(tiny_student, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        Pretrained.from_settings(ModelSettings(model=str(tmp_path / "model"), max_length=64), "teacher")
    begins = f"teacher.model: '{tmp_path}/model': transformers refuses its generation_config.json ({reason}"
    assert str(caught.value).startswith(begins) and str(caught.value).endswith("; correct that file")
    (tmp_path / "model" / "generation_config.json").unlink()
    Pretrained.from_settings(ModelSettings(model=str(tmp_path / "model"), max_length=64), "teacher").load()
