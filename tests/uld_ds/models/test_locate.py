"""Where models come from, and what is said when they do not; students made of nothing, once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from uld_ds.errors import UserError
from uld_ds.models.locate import locate_model
from uld_ds.models.student import make_student
from uld_ds.recipe import ModelSettings, StudentSettings
from uld_ds.tokenization.loading import load_tokenizer, tokenizer_digest
from uld_ds.tokenization.training import train_tokenizer
from uld_ds.utils.cache import converted_gguf

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TEXTS = ["the quick brown fox", "jumps over the lazy dog", "über den faulen Hund"]


def locate(model: str, **settings: Any) -> str:
    return locate_model(ModelSettings(model=model, **{"max_length": 64, **settings}), "teacher")


def message(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- locating


def test_a_folder_is_given_as_an_absolute_path(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate(str(tiny_teacher)) == str(tiny_teacher)
    monkeypatch.chdir(tiny_teacher.parent)
    assert locate(tiny_teacher.name) == locate(f"./{tiny_teacher.name}") == str(tiny_teacher)
    monkeypatch.setenv("HOME", str(tiny_teacher.parent))
    assert locate(f"~/{tiny_teacher.name}") == str(tiny_teacher)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_path_that_does_not_exist(name: str) -> None:
    expected = f"teacher.model: no folder {name!r}; correct the path, or give a hub id like org/name"
    assert message(locate, name) == expected
    assert message(locate, name, gguf_file="x.gguf") == expected


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    assert message(locate, str(tmp_path)) == (
        f"teacher.model: '{tmp_path}' has no config.json; name a folder in Hugging Face layout"
    )
    for content in ("{", "{}", '{"model_type": "nonesuch"}'):
        (tmp_path / "config.json").write_text(content)
        assert message(locate, str(tmp_path)).startswith(
            f"teacher.model: '{tmp_path}': config.json describes no model ("
        )


def test_more_tokens_than_the_model_has_positions(tiny_teacher: Path) -> None:
    assert locate(str(tiny_teacher), max_length=512) == str(tiny_teacher)
    assert message(locate, str(tiny_teacher), max_length=513) == (
        f"teacher.max_length: 513 is more than the 512 positions of '{tiny_teacher}'; lower it"
    )


def test_an_unknown_hub_id_offline() -> None:
    text = message(locate, "no-such-org/no-such-model")
    assert text.startswith("teacher.model: 'no-such-org/no-such-model' is no folder, and the hub does not give it (")
    assert text.endswith("); correct the name, or the network or token that the hub needs")
    assert message(locate, "no-such-org/no-such-model", gguf_file="x.gguf") == (
        "teacher.model: no folder 'no-such-org/no-such-model' that could hold 'x.gguf'; "
        "download the file and name its folder"
    )


def test_a_package_is_located_and_never_imported(
    tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "weights_of_a_model"
    package.symlink_to(tiny_teacher)
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package:weights_of_a_model") == str(tiny_teacher)
    (tmp_path / "weights_with_code").mkdir()
    (tmp_path / "weights_with_code" / "__init__.py").write_text("raise RuntimeError('imported')")
    assert "has no config.json" in message(locate, "package:weights_with_code")
    assert "weights_with_code" not in sys.modules


@pytest.mark.parametrize("package", ["no_such_package", "not a name", "", "json.decoder", "glob"])
def test_a_package_that_is_not_there(package: str) -> None:
    assert message(locate, f"package:{package}") == (
        f"teacher.model: the Python package {package!r} is not installed; install it, with pip's --no-deps"
    )


def test_a_gguf_file_that_is_not_there(tmp_path: Path) -> None:
    assert message(locate, str(tmp_path), gguf_file="m.gguf") == (
        f"teacher.gguf_file: no file 'm.gguf' in '{tmp_path}'; correct the file's name"
    )


def test_a_gguf_file_is_converted_once(tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"weights")
    # As an earlier run has left it, under the digest of the file's content.
    converted = converted_gguf(tmp_path / "m.gguf", "models")
    converted.parent.mkdir(parents=True, exist_ok=True)
    converted.symlink_to(tiny_teacher)
    assert locate(str(tmp_path), gguf_file="m.gguf") == str(tiny_teacher)
    (tmp_path / "m.gguf").write_bytes(b"others")
    assert message(locate, str(tmp_path), gguf_file="m.gguf").startswith("teacher.gguf_file: 'm.gguf' cannot be read (")
    assert [item for item in converted.parent.iterdir() if item.name.startswith(".")] == []


# ---- students


def student(**changes: Any) -> StudentSettings:
    tree: dict[str, Any] = {"from_config": LLAMA, "tokenizer": {"train": "unigram", "vocab_size": 300}, **changes}
    return StudentSettings(**tree)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_a_new_student_depends_on_the_seed_alone(tmp_path: Path) -> None:
    folders = [make_student(student(), lambda: TEXTS, seed, tmp_path / str(i)) for i, seed in enumerate((1, 1, 2))]
    first, same, other = map(weights, folders)
    assert first.keys() == other.keys()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    digests = {tokenizer_digest(AutoTokenizer.from_pretrained(folder)) for folder in folders}
    assert len(digests) == 1


def test_a_student_is_made_once(tmp_path: Path) -> None:
    reads = []

    def texts() -> Iterator[str]:
        reads.append(1)
        yield from TEXTS

    for _ in range(2):
        make_student(student(), texts, 0, tmp_path / "student")
    assert len(reads) == 1


def test_a_new_student_speaks_its_tokenizers_ids(tmp_path: Path) -> None:
    folder = make_student(student(), lambda: TEXTS, 0, tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)
    assert config["hidden_size"] == 16
    assert config["eos_token_id"] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert config["pad_token_id"] == tokenizer.pad_token_id
    assert config["bos_token_id"] is None


def test_a_student_with_another_tokenizer_keeps_its_weights(
    tmp_path: Path, tiny_student: Path, tiny_teacher: Path
) -> None:
    settings = StudentSettings(model=str(tiny_student), tokenizer=str(tiny_teacher), max_length=64)
    folder = make_student(settings, lambda: [], 0, tmp_path / "student")
    before, after = weights(tiny_student), weights(folder)
    assert (
        len(after["lm_head.weight"]) == len(AutoTokenizer.from_pretrained(tiny_teacher)) > len(before["lm_head.weight"])
    )
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    assert torch.equal(after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"])
    assert tokenizer_digest(AutoTokenizer.from_pretrained(folder)) == tokenizer_digest(
        AutoTokenizer.from_pretrained(tiny_teacher)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hiden_size": 8}, "student.from_config.hiden_size: unknown to 'llama' models; remove or correct it"),
        ({"vocab_size": 8}, "student.from_config.vocab_size: follows from student.tokenizer; remove it"),
        (
            {"model_type": "llamma"},
            "student.from_config: no 'llamma' model can be made of it (Unrecognized model ident",
        ),
        ({"hidden_size": "8"}, "student.from_config: no 'llama' model can be made of it (StrictDataclassField"),
        ({"hidden_size": 15}, "student.from_config: no 'llama' model can be made of it (StrictDataclassClass"),
        ({"hidden_act": "x"}, "student.from_config: no 'llama' model can be made of it (KeyError: 'x'); correct its "),
        ({"num_attention_heads": 0}, "student.from_config: no 'llama' model can be made of it (ZeroDivisionError"),
    ],
)
def test_options_that_make_no_model(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    settings = student(from_config={**LLAMA, **options}, tokenizer={"train": "bpe", "vocab_size": 300})
    assert message(make_student, settings, lambda: TEXTS, 0, tmp_path / "student").startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_options_by_their_other_names_are_known(tmp_path: Path) -> None:
    options = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    make_student(student(from_config=options), lambda: TEXTS, 0, tmp_path / "llama")
    gpt2 = {"model_type": "gpt2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    make_student(student(from_config=gpt2), lambda: TEXTS, 0, tmp_path / "gpt2")
    assert json.loads((tmp_path / "gpt2" / "config.json").read_text())["n_embd"] == 16


# ---- tokenizers


def test_tokenizer_digest_is_of_the_content_not_of_the_place(tmp_path: Path, tiny_student: Path) -> None:
    tokenizer = train_tokenizer("bpe", 300, TEXTS)
    digest = tokenizer_digest(tokenizer)
    tokenizer.save_pretrained(tmp_path / "copy")
    copy = load_tokenizer(str(tmp_path / "copy"), None, "x")
    assert tokenizer_digest(copy) == digest
    assert tokenizer_digest(load_tokenizer(str(tiny_student), None, "x")) != digest
    copy.chat_template = "{{ messages }}"
    assert tokenizer_digest(copy) != digest
