"""Whole runs over numbers that are not finite: skipped, named, stopped after too many, and continued."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.helpers.broken_models import break_token, rare_token
from tests.helpers.engines import prepared_job


@pytest.mark.slow
def test_a_run_skips_what_is_not_finite_and_stops_after_too_many(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """One training example makes the student's loss NaN; it turns up twice in the run's two epochs."""
    job = prepared_job(tiny_recipe, tmp_path / "prepared")
    token, bad = rare_token(job, "student")
    student = tmp_path / "student"
    student.mkdir()
    for file in Path(job.student).iterdir():
        (student / file.name).write_bytes(file.read_bytes())
    break_token(job.student, token, student)
    tiny_recipe["student"]["model"] = str(student)
    # Held-out examples must not have the token either: all the others are measured instead.
    del tiny_recipe["data"]["eval"]
    tiny_recipe["training"] |= {"steps": 12, "checkpoint_every": 1, "max_skipped_steps": 1}
    (file := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe))
    command = [sys.executable, "-m", "launcher", "train", str(file), "--json"]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert stopped.returncode == 1
    (line,) = stopped.stderr.splitlines()[-1:]
    assert "1 steps in a row" in line
    assert "The last checkpoint is good" in line
    run_dir = tmp_path / "runs" / "tiny"
    (first,) = [json.loads(text) for text in (run_dir / "skipped.jsonl").read_text().splitlines()]
    assert first["examples"] == [bad]
    assert first["places"] == [f"train.jsonl line {bad + 1}"]
    assert f"training examples: train.jsonl line {bad + 1}" in stopped.stderr
    assert first["digests"] == [job.split("train").rows[bad]["digest"]]
    assert not (run_dir / "result.json").exists()

    again = subprocess.run(
        [*command, "--set", "training.max_skipped_steps=3"], capture_output=True, text=True, timeout=280
    )
    assert again.returncode == 0, again.stderr[-3000:]
    facts = json.loads(again.stdout.splitlines()[-1])
    lines = [json.loads(text) for text in (run_dir / "skipped.jsonl").read_text().splitlines()]
    assert [line["examples"] for line in lines] == [[bad], [bad]]
    assert lines[0] == first
    assert lines[0]["step"] <= 6 < lines[1]["step"]
    assert facts["skipped_steps"] == 2
    client = mlflow.MlflowClient(facts["tracking_uri"])
    learned = [point.step for point in client.get_metric_history(facts["run_id"], "train/loss")]
    assert learned == [step for step in range(1, 13) if step not in {line["step"] for line in lines}]
    assert [p.value for p in client.get_metric_history(facts["run_id"], "train/skipped_steps")] == [1, 2]
    exported = AutoModelForCausalLM.from_pretrained(facts["export_dir"]).state_dict()
    finite = [name for name, tensor in exported.items() if not bool(torch.isfinite(tensor).all())]
    assert finite == ["model.embed_tokens.weight"]
    assert torch.isfinite(exported["model.embed_tokens.weight"]).all(1).logical_not().nonzero().flatten().tolist() == [
        token
    ]
