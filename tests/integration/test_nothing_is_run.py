"""What comes with a model or a store is data: no code of its own, no pickle, no path that leads elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from launcher.drivers.preflight import claim_run_dir
from uld_ds.errors import UserError
from uld_ds.models.locate import locate_model
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import Recipe, TeacherSettings, parse_recipe
from uld_ds.teachers.store.manifest import ShardFacts
from uld_ds.tokenization.loading import load_tokenizer
from uld_ds.training.engines import load_weights

RUNS = "raise SystemExit('code that came with a model was run')\n"


@pytest.fixture
def model(tiny_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher, tmp_path / "model"))


def refusal(model: Path, **settings: str) -> str:
    with pytest.raises(UserError) as caught:
        locate_model(TeacherSettings(model=str(model), max_length=256, **settings), "teacher")  # type: ignore[arg-type]
    return str(caught.value)


def test_code_of_a_model_is_not_run(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.T", None]}
    (model / "own.py").write_text(RUNS)
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    assert refusal(model) == (
        f"teacher.model: '{model}' needs code of its own, and uld-ds runs none that comes with a model unless told to; "
        "use a model that transformers knows, or read its code and then write "
        "teacher.remote_code: {repository: organization/name, revision: <the commit's 40 digits>}"
    )
    # Of a kind that transformers knows, its own code is taken, not the model's.
    (model / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    assert locate_model(TeacherSettings(model=str(model), max_length=256), "teacher") == str(model)
    assert (
        type(load_weights(Pretrained(str(model)), TeacherSettings(model=str(model), precision="fp32"), {})).__name__
        == "LlamaForCausalLM"
    )
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", "auto_map": own}))
    try:
        load_tokenizer(str(model), None, "teacher.model")
    except UserError as error:
        assert "runs none that comes with a model" in str(error)


def test_pickled_weights_are_refused(model: Path) -> None:
    state = AutoModelForCausalLM.from_pretrained(model).state_dict()
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")
    assert refusal(model) == (
        f"teacher.model: '{model}' has no *.safetensors, only pytorch_model.bin: a pickle, which runs code when it is "
        "read; save the model again as safetensors"
    )
    with pytest.raises(OSError, match="safetensors"):
        load_weights(Pretrained(str(model)), TeacherSettings(model=str(model), precision="fp32"), {})


@pytest.mark.parametrize("name", ["../secret.gguf", "/etc/passwd", "a/../../b.gguf"])
def test_a_gguf_file_is_inside_its_folder(model: Path, name: str) -> None:
    assert refusal(model, gguf_file=name) == (
        f"teacher.gguf_file: {name!r} leads out of '{model}'; name a file inside it"
    )


@pytest.mark.parametrize("name", ["../x", "..", ".hidden", "a/b", "/tmp/x", "a\n", "", "a\0b"])
def test_a_run_and_a_shard_have_plain_names(name: str, tiny_recipe: dict[str, dict[str, object]]) -> None:
    tiny_recipe["run"]["name"] = name
    with pytest.raises(UserError, match=r"^run\.name: "):
        parse_recipe(tiny_recipe)
    with pytest.raises(ValidationError):
        ShardFacts(name=name, examples=1, tokens=1, bytes=1, sha256="0")


def test_a_secret_does_not_lie_in_the_runs_folder(
    tiny_recipe: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_password(password: str, steps: int = 6) -> Recipe:
        monkeypatch.setenv("DATABASE_PASSWORD", password)
        tiny_recipe["tracking"]["uri"] = f"https://me:{password}@mlflow.example/"
        tiny_recipe["teacher"]["system_prompt"] = f"say {password}"
        # Alone on its line, what stands for it is no YAML without quotes.
        tiny_recipe["student"]["system_prompt"] = password
        tiny_recipe["training"]["steps"] = steps
        return parse_recipe(tiny_recipe)

    run_dir = claim_run_dir(with_password("correct horse"))
    text = (run_dir / "recipe.yaml").read_text()
    assert "correct horse" not in text
    assert "say ***" in text
    (run_dir / "mlflow_run_id").write_text("0")
    # Renewed, it is the same run; another recipe is still told apart.
    assert claim_run_dir(with_password("battery staple")) == run_dir
    with pytest.raises(UserError, match=r"began with another recipe \(training.steps: 6 -> 7\)"):
        claim_run_dir(with_password("battery staple", steps=7))
