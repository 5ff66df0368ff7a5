"""A term of the loss, added to a copy of the code as docs/extending.md says, is known wherever terms are told of."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.documents import ROOT, code_blocks

PAGE = (ROOT / "docs" / "extending.md").read_text()


def added_lines(where: str) -> str:
    """What the page's block of changes adds at a place of the code."""
    (block,) = code_blocks("diff", PAGE)
    (part,) = [part for part in block.split("\n\n") if part.startswith(f"# {where}")]
    return "".join(line.removeprefix("+") + "\n" for line in part.splitlines() if line.startswith("+"))


def insert(file: Path, before: str, lines: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1, (file, before)
    file.write_text(text.replace(before, lines + before))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code with the page's term in it."""
    copy = tmp_path / "copy"
    for package in ("uld_ds", "launcher", "ds_configs"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (term,) = [block for block in code_blocks("python", PAGE) if "class Top1Term" in block]
    (copy / "uld_ds" / "losses" / "top1.py").write_text(term)
    objective, terms = copy / "uld_ds" / "recipe" / "objective.py", copy / "uld_ds" / "losses" / "terms.py"
    insert(objective, "    top_ids: ", added_lines("uld_ds/recipe/objective.py"))
    insert(terms, "from uld_ds.recipe import", added_lines("uld_ds/losses/terms.py, among the imports"))
    insert(terms, '    "classical": ', added_lines("uld_ds/losses/terms.py, in FACTORIES"))
    return copy


def test_a_new_term_is_known_everywhere(copy: Path, tmp_path: Path, tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["teacher"]["model"] = tiny_recipe["student"]["model"]  # one tokenizer on both sides
    tiny_recipe["training"]["micro_batch_size"] = 4
    tiny_recipe["cluster"]["workers"] = 1
    weights = {"ce": 0.5, "uld": 0.3, "top1": 0.25}
    tiny_recipe["objective"] = {**weights, "top_ids": 4}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(tiny_recipe))
    environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.helpers.new_term", str(file)]
    done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["code"] == str(copy)

    # The recipe: its page, and its weight in the loss.
    meaning = "Weight of the cross-entropy on the teacher's top token. Only where both sides have the same tokenizer."
    assert f"| `objective.top1` | number | `0.0` | {meaning} |" in said["reference"]
    metrics = said["metrics"]
    assert metrics["train/top1"] > 0.01, "the student has the teacher's weights, but is not sure"
    assert metrics["train/loss"] == pytest.approx(
        sum(weight * metrics[f"train/{key}"] for key, weight in weights.items()), rel=1e-5
    )

    # What a run leaves behind.
    assert said["facts"]["top1_weight"] == 0.25
    assert list(said["facts"]).index("top1_weight") == list(said["facts"]).index("completion_weight") + 1
    words = " ".join(re.sub("<[^>]*>", " ", said["report"]).split())
    assert "Loss 0.5 × cross-entropy + 0.3 × ULD + 0.25 × top token" in words
    assert "Top token" in words and "top1 weight 0.25" in words
    assert said["comparison"] == "0.5 ce + 0.3 uld + 0.25 top1, segments"
    assert " + 0.25 x top token, alignment `segments`." in said["card"]
