"""Runs of the commands with two teachers: a store of one, a student of both, and what is written of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from tests.helpers.killable import Training
from tests.helpers.ray_nodes import clean_environment
from tests.helpers.several_teachers import several
from uld_ds.registry.lineage import lineage


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stored_teacher_and_one_that_runs_teach_rows_of_their_own(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    recipe = several(tiny_recipe, tmp_path, rows, routed=True) | {"store": {"top_ids": 16}}
    recipe["teachers"][1] |= {"path": str(tmp_path / "store"), "source": "stored"}
    (file := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "launcher", "store", "build", str(file), "--teacher", "code", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["examples"] == 16
    training = Training(recipe, tmp_path)
    assert training.finish(400) == 0, training.errors()[-3000:]
    result = json.loads((training.run_dir / "result.json").read_text())
    assert result["bits_per_byte"]["after"] < result["bits_per_byte"]["before"]
    assert result["bits_per_byte"]["teacher"] > 0
    # The outputs of the one that runs are cached in a folder of its name; the other needs no cache.
    assert [folder.name for folder in (training.run_dir / "teacher").iterdir()] == ["general"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    chain = lineage(client, "tiny-student", "1", None)
    of_teachers = chain["teacher"]
    assert of_teachers["model"].startswith(recipe["teachers"][0]["model"])
    assert (of_teachers["general"]["weight"], of_teachers["code"]["weight"]) == (0.7, 0.3)
    assert of_teachers["code"]["teacher_store"] == str(tmp_path / "store")
    run = client.get_run(result["run_id"])
    assert run.data.params["teachers.code.source"] == "stored"
    assert {"train/uld", "train/general/uld", "train/code/uld"} <= set(run.data.metrics)
    assert {f"eval/{name}/teacher_bits_per_byte" for name in ("general", "code")} <= set(run.data.metrics)
    page = (training.run_dir / "report.html").read_text()
    assert "general" in page
    card = (training.run_dir / "export" / "README.md").read_text()
    assert "each row by the teacher that it names (0.7 " in card
