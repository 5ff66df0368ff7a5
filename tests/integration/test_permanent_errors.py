"""An error that would be the same next time ends a run at the first attempt; a lost worker is another matter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.helpers.broken_folders import broken_copy

LOST = "model.layers.1.mlp.up_proj.weight"


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[LOST]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("verb", [("train",), ("store", "build")], ids=" ".join)
def test_the_workers_are_started_once(
    tiny_recipe: dict[str, Any], tiny_teacher: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    folder = broken_copy(tiny_teacher, tmp_path / "broken", without_a_tensor)
    tiny_recipe["teacher"] |= {"model": str(folder), "prompt_template": "{prompt}", "path": str(tmp_path / "store")}
    tiny_recipe["student"]["prompt_template"] = "{prompt}"
    tiny_recipe["cluster"] |= {"max_failures": 3}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    words = [sys.executable, "-m", "launcher", *verb, str(recipe)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1
    name = "tiny" if verb == ("train",) else "tiny-store"
    assert done.stderr.splitlines()[-1] == (
        f"error: '{name}' stopped: {folder}: missing keys while loading (1): {LOST}"
    )
    logs = "".join(file.read_text() for file in (tmp_path / "runs" / name / "logs").glob("*0*.log"))
    assert len(re.findall(f"{re.escape(str(folder))}: missing keys while loading", logs)) == 1
