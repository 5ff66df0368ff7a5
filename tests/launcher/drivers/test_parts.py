"""What does not fit together is told by every verb alike: one line, exit status 2, before any cluster is started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import ray
import yaml

from launcher import cli
from tests.helpers import broken_folders as broken
from tests.helpers.gguf_files import write_gguf

Outcome = tuple[int, str]
Call = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the program in this process: exit status, and the last line of standard error."""
    monkeypatch.chdir(tmp_path)

    def run_main(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["uld-ds", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        written = capfd.readouterr().err
        assert "Traceback" not in written
        assert not ray.is_initialized()
        return int(caught.value.code or 0), written.splitlines()[-1]

    return run_main


def recipe_file(recipe: dict[str, Any], folder: Path) -> str:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


TEACHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pointer": (broken.pointer_to_weights, "model.safetensors in '{folder}' is a pointer of Git LFS, not the file "),
    "tokenizer": (broken.pointer_to_tokenizer, "tokenizer.json in '{folder}' is a pointer of Git LFS, not the file "),
    "cut": (broken.cut_weights, "model.safetensors in '{folder}' is cut off: "),
    "shard": (
        broken.missing_shard,
        "'{folder}' lacks 1 of 2 files of weights, e.g. model-00002-of-00002.safetensors; ",
    ),
    "nothing": (broken.no_config, "'{folder}' has no config.json; name a folder in Hugging Face layout"),
    "architecture": (broken.unknown_architecture, "'{folder}': config.json describes no model ("),
    "quantized": (
        broken.quantized,
        "the weights of '{folder}' are quantized (gptq), which needs optimum and gptqmodel",
    ),
    "vocabulary": (broken.another_vocabulary, "its tokenizer has "),
    "size": (broken.another_size, "the embeddings in '{folder}' have 600 rows, and its config.json says 664; "),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_whose_parts_do_not_fit(
    call: Call, tiny_recipe: dict[str, Any], tiny_teacher: Path, tmp_path: Path, name: str
) -> None:
    fault, problem = TEACHERS[name]
    folder = broken.broken_copy(tiny_teacher, tmp_path / "broken", fault)
    tiny_recipe["teacher"] |= {"model": str(folder), "prompt_template": "{prompt}", "path": str(tmp_path / "store")}
    tiny_recipe["student"]["prompt_template"] = "{prompt}"
    file = recipe_file(tiny_recipe, tmp_path)
    said = {words: call(*words) for words in (("plan", file), ("train", file), ("store", "build", file))}
    said["generate",] = call("generate", file)
    assert len(set(said.values())) == 1, said
    status, line = next(iter(said.values()))
    assert status == 2
    assert line.startswith(f"error: teacher.model: {problem.format(folder=folder)}")
    # A model that is evaluated has no section in the recipe.
    assert call("evaluate", str(folder), file) == (2, line.replace("teacher.model", "MODEL"))


STUDENTS: dict[str, tuple[Callable[[Path], None] | None, dict[str, Any], str]] = {
    "cut": (broken.cut_weights, {}, "student.model: model.safetensors in '{folder}' is cut off: "),
    "vocabulary": (broken.another_vocabulary, {}, "student.model: its tokenizer has "),
    "quantized": (
        lambda folder: broken.edit_json(folder / "config.json", quantization_config={"quant_method": "fp8"}),
        {},
        "student.model: its weights are quantized (fp8), and cannot learn; start from the model that it was made of",
    ),
    "adapters": (
        None,
        {"lora": {"targets": ["q_proj", "embed_tokens"]}},
        "student.lora.targets: 'embed_tokens' is a layer of kind Embedding, and only adapters of linear layers can be "
        "merged at export; choose among down_proj, ",
    ),
    "length": (
        None,
        {"max_length": 4096},
        "student.max_length: 4096 is more than the 512 positions of '{folder}'; lower",
    ),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_whose_parts_do_not_fit(
    call: Call, tiny_recipe: dict[str, Any], tiny_student: Path, tmp_path: Path, name: str
) -> None:
    fault, settings, problem = STUDENTS[name]
    folder = broken.broken_copy(tiny_student, tmp_path / "broken", *([] if fault is None else [fault]))
    tiny_recipe["student"] |= {"model": str(folder), "prompt_template": "{prompt}", **settings}
    tiny_recipe["teacher"]["prompt_template"] = "{prompt}"
    file = recipe_file(tiny_recipe, tmp_path)
    status, line = call("plan", file)
    assert (status, line) == call("train", file)
    assert status == 2 and line.startswith(f"error: {problem.format(folder=folder)}")


HUB: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (broken.cut_weights, "model.safetensors in '{folder}' is cut off: "),
    "pointer": (broken.pointer_to_weights, "model.safetensors in '{folder}' is a pointer of Git LFS, not the file "),
    "shard": (broken.missing_shard, "'{folder}' lacks 1 of 2 files of weights, e.g. "),
    "vocabulary": (broken.another_vocabulary, "its tokenizer has "),
}


@pytest.mark.parametrize("name", HUB)
def test_a_model_in_the_hubs_cache_whose_parts_do_not_fit(
    call: Call,
    tiny_recipe: dict[str, Any],
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    fault, problem = HUB[name]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub" / "models--org--broken"
    folder = broken.broken_copy(tiny_teacher, place / "snapshots" / ("a" * 40), fault)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    tiny_recipe["teacher"] |= {"model": "org/broken", "prompt_template": "{prompt}"}
    tiny_recipe["student"]["prompt_template"] = "{prompt}"
    file = recipe_file(tiny_recipe, tmp_path)
    status, line = call("plan", file)
    assert (status, line) == call("train", file)
    assert status == 2 and line.startswith(f"error: teacher.model: {problem.format(folder=folder)}")


def test_a_gguf_file_that_is_not_there(
    call: Call, tiny_recipe: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    tiny_recipe["teacher"]["gguf_file"] = "x.gguf"
    file = recipe_file(tiny_recipe, tmp_path)
    expected = f"error: teacher.gguf_file: no file 'x.gguf' in '{tiny_teacher}'; correct the file's name"
    assert call("plan", file) == call("train", file) == (2, expected)


def test_a_gguf_file_that_is_cut_off(
    call: Call, tiny_recipe: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    tokens = [*map(chr, range(33, 97)), "<s>"]
    file = write_gguf(tmp_path / "x.gguf", tokens, [1] * len(tokens), merges=[], pre="gpt-2", weights=True)
    file.write_bytes(file.read_bytes()[:-2000])
    tiny_recipe["teacher"] |= {"model": str(tmp_path), "gguf_file": "x.gguf"}
    recipe = recipe_file(tiny_recipe, tmp_path)
    status, line = call("plan", recipe)
    assert (status, line) == call("train", recipe)
    assert status == 2 and line.startswith("error: teacher.gguf_file: 'x.gguf' cannot be read (")
    assert line.endswith("); name a GGUF file that transformers supports, or download it again")
