"""A whole run of a student with an encoder: trained under Ray, registered, asked, evaluated; made by the recipe."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from launcher.drivers.evaluate import evaluate_model
from launcher.drivers.train import run_training
from tests.helpers.tiny import tiny_recipe_in
from uld_ds.recipe import parse_recipe

SHIPPED = Path(str(resources.files("launcher.recipes") / "encoder_decoder.yaml"))
SMALLER = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2}


@pytest.mark.slow
def test_from_configuration_to_answers(
    tmp_path: Path, tiny_teacher: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, Any] = tiny_recipe_in(tmp_path, tiny_teacher, tiny_teacher, rows)
    recipe["student"] = yaml.safe_load(SHIPPED.read_text())["student"]
    recipe["student"]["from_config"] |= SMALLER
    recipe["student"]["tokenizer"]["vocab_size"] = 400
    recipe["evaluation"] = {"sample_tokens": 4, "metrics": ["f1"]}
    recipe["generation"] = {"max_new_tokens": 4}
    parsed = parse_recipe(recipe)
    facts = run_training(parsed)
    bits = facts["bits_per_byte"]
    assert bits["after"] < 0.9 * bits["before"]
    student = AutoModelForSeq2SeqLM.from_pretrained(facts["export_dir"])
    assert len(student.decoder.block) == 2
    tokenizer = AutoTokenizer.from_pretrained(facts["export_dir"])
    sample = facts["sample"]
    ids = tokenizer(sample["prompt"], return_tensors="pt")["input_ids"]
    said = student.generate(input_ids=ids, max_new_tokens=4, do_sample=False, repetition_penalty=1.3)
    assert sample["answer"] == tokenizer.decode(said[0, 1:], skip_special_tokens=True).strip()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", facts["tracking_uri"])
    served = mlflow.pyfunc.load_model("models:/tiny-student@candidate")
    asked = {"max_new_tokens": 4, "repetition_penalty": 1.3}
    (answer,) = served.predict({"prompt": sample["prompt"]}, params=asked)
    assert answer.strip() == sample["answer"]
    evaluated = evaluate_model(facts["export_dir"], parsed, str(tmp_path / "evaluation"))
    assert evaluated["bits_per_byte"]["mean"] == pytest.approx(bits["after"], rel=1e-4)
    assert evaluated["prompts"] == evaluated["rows"] - evaluated["duplicates"] == 12
