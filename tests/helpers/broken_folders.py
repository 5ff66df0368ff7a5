"""Copies of a model's folder in which something is missing or does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "5" * 64 + "\nsize 269060552\n"


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pointer_to_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text(POINTER)


def pointer_to_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def missing_shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    save_file({name: weights[name] for name in names[:-1]}, folder / "model-00001-of-00002.safetensors")
    shards = dict.fromkeys(names[:-1], "model-00001-of-00002.safetensors")
    shards[names[-1]] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="nonesuch")


def quantized(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


def another_vocabulary(folder: Path) -> None:
    """Fewer rows than the tokenizer has ids, in configuration and weights alike."""
    config = json.loads((folder / "config.json").read_text())
    rows = config["vocab_size"] - 7
    edit_json(folder / "config.json", vocab_size=rows)
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:rows].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def another_size(folder: Path) -> None:
    """A configuration of more rows than the weights have."""
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", vocab_size=config["vocab_size"] + 64)


def broken_copy(model: Path, target: Path, *faults: Callable[[Path], None]) -> Path:
    shutil.copytree(model, target)
    for fault in faults:
        fault(target)
    return target
