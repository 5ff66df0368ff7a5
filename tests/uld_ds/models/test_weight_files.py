"""Headers of safetensors files: what is whole passes, and each kind of damage has its own line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import broken_folders as broken
from uld_ds.errors import UserError
from uld_ds.models.weight_files import check_no_pointers, tensor_bytes, tensors, weight_files


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        weight_files(folder, "teacher.model")
    return str(caught.value)


def written(file: Path, header: bytes, rest: bytes = b"") -> None:
    file.write_bytes(struct.pack("<Q", len(header)) + header + rest)


def test_headers_tell_names_shapes_and_bytes(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(5, dtype=torch.bfloat16), "b": torch.zeros(2, 3)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = weight_files(tmp_path, "x")
    assert files == [tmp_path / "model.safetensors"]
    assert {name: tensor["shape"] for name, tensor in tensors(files[0], "x").items()} == {"a": [5], "b": [2, 3]}
    assert tensor_bytes(files, "x") == 5 * 2 + 6 * 4
    save_file({}, tmp_path / "model.safetensors")
    assert tensor_bytes(files, "x") == 0


def test_only_files_that_are_read_are_looked_at(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = broken.broken_copy(tiny_teacher, tmp_path / "copy")
    # What some repositories hold beside, for another program; not everybody fetches it.
    (folder / "consolidated.safetensors").write_text(broken.POINTER)
    (folder / "figure.png").write_text(broken.POINTER)
    check_no_pointers(folder, "x")
    assert weight_files(folder, "x") == [folder / "model.safetensors"]
    assert weight_files(tmp_path, "x") == []


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (
            broken.pointer_to_weights,
            "model.safetensors in '{folder}' is a pointer of Git LFS, not the file itself; run `git lfs pull` in that "
            "folder, or download the file",
        ),
        (
            broken.cut_weights,
            "model.safetensors in '{folder}' is cut off: {cut:,} bytes, and its header speaks of {whole:,}; download "
            "it again",
        ),
        (
            broken.missing_shard,
            "'{folder}' lacks 1 of 2 files of weights, e.g. model-00002-of-00002.safetensors; download what is missing",
        ),
    ],
)
def test_weights_that_are_not_whole(
    tiny_teacher: Path, tmp_path: Path, fault: Callable[[Path], None], problem: str
) -> None:
    folder = broken.broken_copy(tiny_teacher, tmp_path / "copy", fault)
    whole = (tiny_teacher / "model.safetensors").stat().st_size
    assert refusal(folder) == f"teacher.model: {problem.format(folder=folder, whole=whole, cut=whole - 1000)}"


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for content in (b"", b"1234567", b"\xff" * 64):
        file.write_bytes(content)
        problem = f"is no safetensors file ({len(content)} bytes); download it again"
        assert refusal(tmp_path) == f"teacher.model: model.safetensors in '{tmp_path}' {problem}"
    file.write_bytes(struct.pack("<Q", 500) + b"{")
    assert "is cut off: 9 bytes, 508 of header alone; " in refusal(tmp_path)
    for header in (b"[1]", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b"{nothing"):
        written(file, header)
        assert f"model.safetensors in '{tmp_path}' has a damaged header (" in refusal(tmp_path)
    header = json.dumps({"a": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]}}).encode()
    written(file, header, b"0123456789 and more")
    assert "is damaged: " in refusal(tmp_path)


def test_a_folder_without_the_names_that_transformers_looks_for(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = broken.broken_copy(tiny_teacher, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert refusal(folder) == (
        f"teacher.model: '{folder}' has neither model.safetensors nor model.safetensors.index.json, only "
        "model.fp16.safetensors; name a folder as transformers saves it"
    )
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    assert refusal(folder).startswith(
        f"teacher.model: model.safetensors.index.json in '{folder}' lists no weights (AttributeError: "
    )
    (folder / "model.safetensors.index.json").write_text(broken.POINTER)
    assert "model.safetensors.index.json" in refusal(folder) and "Git LFS" in refusal(folder)


def test_what_is_read_beside_weights_may_be_a_pointer_too(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = broken.broken_copy(tiny_teacher, tmp_path / "copy", broken.pointer_to_tokenizer)
    with pytest.raises(UserError) as caught:
        check_no_pointers(folder, "student.model")
    assert str(caught.value).startswith(f"student.model: tokenizer.json in '{folder}' is a pointer of Git LFS, ")
