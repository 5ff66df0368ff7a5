"""A whole run of a student with a layer less, learning low-rank adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.drivers.train import run_training
from tests.helpers.tiny import tiny_recipe_in
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import ModelSettings, parse_recipe
from uld_ds.training.preparation import share_a_tokenizer


@pytest.mark.slow
def test_adapters_are_learned_and_merged(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> None:
    recipe: dict[str, Any] = tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
    recipe["student"] |= {"keep_layers": [1], "lora": {"rank": 4}}
    facts = run_training(parse_recipe(recipe))
    assert facts["same_tokenizer"] is False
    assert facts["bits_per_byte"]["after"] < facts["bits_per_byte"]["before"]
    exported = AutoModelForCausalLM.from_pretrained(facts["export_dir"])
    large = AutoModelForCausalLM.from_pretrained(tiny_student).state_dict()
    assert len(exported.model.layers) == 1
    for name, weight in exported.state_dict().items():
        same = torch.equal(weight, large[name.replace("layers.0.", "layers.1.")])
        assert same is not ("proj" in name), name
    version = mlflow.MlflowClient(facts["tracking_uri"]).get_model_version_by_alias("tiny-student", "candidate")
    assert version.tags["student_keep_layers"] == "[1]"
    assert '"rank": 4' in version.tags["student_lora"]


@pytest.mark.slow
def test_beside_weights_in_four_bits(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> None:
    recipe: dict[str, Any] = tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
    recipe["student"] |= {"lora": {"rank": 4, "quantize": "nf4"}}
    facts = run_training(parse_recipe(recipe))
    assert facts["bits_per_byte"]["after"] < facts["bits_per_byte"]["before"]
    exported = AutoModelForCausalLM.from_pretrained(facts["export_dir"])
    assert not hasattr(exported.config, "quantization_config")
    large = AutoModelForCausalLM.from_pretrained(tiny_student).state_dict()
    for name, weight in exported.state_dict().items():
        assert torch.equal(weight, large[name]) is not ("proj" in name), name
    version = mlflow.MlflowClient(facts["tracking_uri"]).get_model_version_by_alias("tiny-student", "candidate")
    assert '"quantise": "nf4"' in version.tags["student_lora"]


@pytest.mark.slow
def test_a_mixture_of_experts_is_adapted_and_exported(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> None:
    recipe: dict[str, Any] = tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
    mixture = {
        "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4,
        "num_experts_per_tok": 2, "mlp_only_layers": [0],
    }  # fmt: skip
    del recipe["student"]["model"]
    recipe["student"] |= {"from_config": mixture, "tokenizer": str(tiny_student), "lora": {"rank": 4}}
    facts = run_training(parse_recipe(recipe))
    assert facts["bits_per_byte"]["after"] < facts["bits_per_byte"]["before"]
    export = Path(facts["export_dir"])
    exported, info = AutoModelForCausalLM.from_pretrained(export, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before = AutoModelForCausalLM.from_pretrained(export.parent / "student").state_dict()
    changed = {name for name, weight in exported.state_dict().items() if not torch.equal(weight, before[name])}
    attention = {f"model.layers.{n}.self_attn.{part}_proj.weight" for n in (0, 1) for part in "qkvo"}
    assert changed == attention | {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    said = "`qwen3_moe` models of this kind were read by transformers 4.57 with the same logits."
    assert said in (export / "README.md").read_text()


def test_vocabularies_that_are_one(tiny_teacher: Path, tiny_student: Path) -> None:
    settings = ModelSettings(model="x")
    places = tiny_teacher, tiny_student
    teacher, student = (TextSide.of_model(Pretrained(str(place)), settings, "teacher") for place in places)
    assert share_a_tokenizer(teacher, teacher)
    assert not share_a_tokenizer(student, teacher)


def test_what_is_not_there_is_said_before_anything_starts(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> None:
    recipe: dict[str, Any] = tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
    recipe["student"]["freeze"] = ["transformer.h.0.*"]
    with pytest.raises(UserError, match=r"^student.freeze: 'transformer.h.0.\*' names no parameter; "):
        run_training(parse_recipe(recipe))
