"""A pretrained model as a value: its fields decide what is loaded, and whose code is run."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.helpers.tiny import save_tiny_model, save_tiny_t5, save_with_own_head
from tests.uld_ds.models.conftest import Plant
from uld_ds.errors import UserError
from uld_ds.models.identity import model_identity
from uld_ds.models.layer_pruning import with_layers
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import ModelSettings, TeacherSettings
from uld_ds.recipe.models import RemoteCodeSettings

FIRST, SECOND = "1" * 40, "2" * 40
NAMES = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


def trusted(commit: str = FIRST) -> RemoteCodeSettings:
    return RemoteCodeSettings(repository="acme/own", revision=commit)


def test_it_is_a_value() -> None:
    one, same = (Pretrained("acme/own", FIRST, "teacher.model", trusted()) for _ in range(2))
    assert one is not same
    others = [
        replace(one, place="acme/else"),
        replace(one, revision=SECOND),
        replace(one, key="student.model"),
        replace(one, code=trusted(SECOND)),
        replace(one, code=None),
    ]
    assert len({one, same, *others}) == 6
    # Ray's workers get it from the driver.
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(FrozenInstanceError):
        one.place = "acme/else"  # type: ignore[misc]


def test_it_is_what_a_recipe_says(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = {"repository": "acme/own", "revision": FIRST}
    settings = TeacherSettings(model="acme/own", revision=SECOND, remote_code=RemoteCodeSettings(**code))
    assert Pretrained.at("acme/own", settings, "teacher") == Pretrained(
        "acme/own", SECOND, "teacher.model", RemoteCodeSettings(**code)
    )
    monkeypatch.chdir(tiny_teacher.parent)
    plain = ModelSettings(model=tiny_teacher.name, max_length=64)
    assert Pretrained.from_settings(plain, "student") == Pretrained(str(tiny_teacher), None, "student.model", None)


def test_configuration_tokenizer_and_weights_are_of_one_revision(
    plant_model: Plant, tiny_teacher: Path, tiny_student: Path
) -> None:
    plant_model("acme/two", FIRST, tiny_teacher)
    plant_model("acme/two", SECOND, tiny_student, main=True)
    words = "How long is a piece of string?"
    for revision, folder, size in ((FIRST, tiny_teacher, 600), (SECOND, tiny_student, 400), (None, tiny_student, 400)):
        model = Pretrained("acme/two", revision)
        assert model.config().vocab_size == len(model.tokenizer()) == size
        assert model.tokenizer()(words)["input_ids"] == AutoTokenizer.from_pretrained(folder)(words)["input_ids"]
        loaded = model.load(dtype=torch.float32)
        name = "model.embed_tokens.weight"
        assert torch.equal(loaded.state_dict()[name], load_file(folder / "model.safetensors")[name])
        commit = revision or SECOND
        assert model_identity(model) == (commit, f"commit:{commit}")


def test_more_options_are_handed_on(tiny_teacher: Path) -> None:
    lm, info = Pretrained(str(tiny_teacher)).load(dtype=torch.bfloat16, output_loading_info=True)
    assert lm.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert Pretrained(str(tiny_teacher)).config(vocab_size=7).vocab_size == 7


def test_code_that_is_not_trusted_is_refused_by_the_key(plant: Plant) -> None:
    folder = plant("acme/own", FIRST, NAMES, code="raise SystemExit('run')")
    tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError) as caught:
        Pretrained.from_settings(ModelSettings(model="acme/own", revision=FIRST, max_length=64), "student")
    assert str(caught.value) == (
        "student.model: 'acme/own' needs code of its own, and uld-ds runs none that comes with a model unless told to; "
        "use a model that transformers knows (only a teacher may have code of its own)"
    )
    model = Pretrained("acme/own", FIRST, "student.model")
    with pytest.raises(UserError) as caught:
        model.tokenizer()
    assert str(caught.value) == (
        "student.model: no tokenizer at 'acme/own' (it needs code of its own, and uld-ds runs none that comes with a "
        "model); name a folder or hub id that has one"
    )
    for read in (model.config, model.load, model.decoder_start):
        with pytest.raises(ValueError, match="trust_remote_code"):
            read()


def test_code_that_is_trusted_is_run_at_its_commit_for_all_of_it(plant: Plant) -> None:
    plant("acme/own", FIRST, NAMES)
    plant("acme/own", SECOND, NAMES, code="raise SystemExit('run')")
    model = Pretrained("acme/own", FIRST, "teacher.model", trusted())
    assert (type(model.config()).__name__, type(model.load()).__name__) == ("Config", "Model")
    assert model.load().commit == FIRST
    assert model.decoder_start() is None


@pytest.mark.parametrize("option", [{"use_safetensors": False}, {"trust_remote_code": True}, {"revision": "main"}])
def test_what_is_safe_is_no_option(tiny_teacher: Path, option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"multiple values for keyword argument '{next(iter(option))}'"):
        Pretrained(str(tiny_teacher)).load(**option)


def test_pickled_weights_are_not_read(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_teacher, tmp_path / "pickled"))
    (folder / "model.safetensors").unlink()
    torch.save(load_file(tiny_teacher / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        Pretrained(str(folder)).load()


def test_a_place_without_a_tokenizer_is_named_by_its_key(tiny_teacher: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_teacher / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"^MODEL: no tokenizer at '"):
        Pretrained(str(tmp_path), key="MODEL").tokenizer()


def test_what_a_decoder_begins_with(tiny_teacher: Path, tmp_path: Path) -> None:
    assert Pretrained(str(tiny_teacher)).decoder_start() is None
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    folder = save_tiny_t5(tmp_path / "t5", tokenizer, seed=1)
    model = Pretrained(str(folder), key="student.model")
    assert model.decoder_start() == tokenizer.pad_token_id
    # It is in generation_config.json; an older checkpoint has it in config.json alone.
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"decoder_start_token_id": 5}))
    assert model.decoder_start() == 5
    (folder / "generation_config.json").unlink()
    assert model.decoder_start() == tokenizer.pad_token_id
    config = json.loads((folder / "config.json").read_text())
    for name in ("decoder_start_token_id", "bos_token_id"):
        config[name] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        model.decoder_start()
    assert str(caught.value) == (
        f"student.model: {str(folder)!r} does not say what its decoder begins with; give it decoder_start_token_id"
    )


def test_a_head_of_its_own_outlives_what_is_done_to_a_model(rows: list[dict[str, str]], tmp_path: Path) -> None:
    """transformers ties by the configuration again whenever a model is made anew or resized."""
    tied = save_tiny_model(tmp_path / "tied", rows, kind="bpe", vocab_size=600, seed=1, tied=True)
    place = save_with_own_head(tied, tmp_path / "own")
    assert json.loads((place / "config.json").read_text())["tie_word_embeddings"] is True
    held = load_file(place / "model.safetensors")["lm_head.weight"]

    def head_of(model: Any) -> Any:
        assert model.config.tie_word_embeddings is (model.lm_head.weight is model.model.embed_tokens.weight) is False
        return model.lm_head.weight

    assert torch.equal(head_of(Pretrained(str(place)).load()), held)
    assert torch.equal(head_of(with_layers(Pretrained(str(place)).load(), [0, 1])), held)
    resized = Pretrained(str(place)).load()
    resized.resize_token_embeddings(700, mean_resizing=False)
    assert torch.equal(head_of(resized)[:600], held[:600])
    resized.save_pretrained(tmp_path / "resized")
    assert torch.equal(head_of(Pretrained(str(tmp_path / "resized")).load()), head_of(resized))
    model, info = Pretrained(str(tied)).load(output_loading_info=True)
    assert model.config.tie_word_embeddings and not info["missing_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
