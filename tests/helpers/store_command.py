"""``uld-ds store build`` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.ray_nodes import clean_environment


def built_store(tree: dict[str, Any], folder: Path, *options: str, timeout: float = 900) -> dict[str, Any]:
    """The facts of a store that the command has built of a recipe in a folder."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "launcher", "store", "build", str(file), "--output", str(folder), "--json"]
    environment = clean_environment() | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts
