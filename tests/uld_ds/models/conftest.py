"""A hub cache of a test's own: what a repository holds at a commit, code of its own included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import transformers.dynamic_module_utils

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "llama-of-its-own"

class Model(LlamaForCausalLM):
    config_class = Config
    commit = {commit!r}
"""

Plant = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a hub cache, and one for code that comes out of it, that this test alone has."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return tmp_path / "hub"


@pytest.fixture
def plant_model(hub: Path) -> Plant:
    """Puts a copy of a model's folder into the hub cache, as a repository at a commit."""

    def put(repository: str, commit: str, model: Path, *, main: bool = False) -> Path:
        cached = hub / f"models--{repository.replace('/', '--')}"
        if main:
            (cached / "refs").mkdir(parents=True)
            (cached / "refs" / "main").write_text(commit)
        return Path(shutil.copytree(model, cached / "snapshots" / commit))

    return put


@pytest.fixture
def plant(plant_model: Plant, tiny_teacher: Path) -> Plant:
    """Puts a model that needs code of its own into the hub cache, as a repository at a commit."""

    def put(repository: str, commit: str, names: dict[str, Any], code: str | None = None) -> Path:
        folder = plant_model(repository, commit, tiny_teacher)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "llama-of-its-own", "auto_map": names}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text(CODE.format(commit=commit) if code is None else code)
        return folder

    return put
