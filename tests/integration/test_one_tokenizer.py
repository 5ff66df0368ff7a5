"""Runs whose objective compares tokens by their numbers, or by what they spell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest

from launcher.drivers.train import run_training
from tests.helpers.tiny import save_tiny_model, tiny_recipe_in
from uld_ds.errors import UserError
from uld_ds.recipe import parse_recipe


def test_two_tokenizers_are_refused(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> None:
    recipe: dict[str, Any] = tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
    recipe["objective"] = {"classical": 0.5}
    with pytest.raises(UserError, match=r"^objective.classical: 0.5 needs one tokenizer .* objective.uld or "):
        run_training(parse_recipe(recipe))
    assert not list((tmp_path / "runs").glob("*/rows")), "refused before data is prepared"


@pytest.mark.slow
def test_a_student_learns_from_the_teachers_top_k_tokens(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    teacher = save_tiny_model(tmp_path / "t", rows, kind="bpe", vocab_size=420, seed=1)
    student = save_tiny_model(tmp_path / "s", rows, kind="bpe", vocab_size=420, seed=2)
    recipe: dict[str, Any] = tiny_recipe_in(tmp_path, teacher, student, rows)
    recipe["objective"] = {"ce": 0.0, "uld": 0.0, "classical": 1.0, "top_ids": 48}
    # More than one epoch: the teacher's outputs are cached, ids and all.
    recipe["training"] |= {"steps": 14}
    facts = run_training(parse_recipe(recipe))
    assert facts["same_tokenizer"] is True
    client = mlflow.MlflowClient(facts["tracking_uri"])
    history = client.get_metric_history(facts["run_id"], "train/classical")
    values = [metric.value for metric in sorted(history, key=lambda metric: metric.step)]
    assert len(values) == 14
    assert values[-1] < 0.7 * values[0]
    version = client.get_model_version_by_alias("tiny-student", "candidate")
    assert version.tags["classical_weight"] == "1.0"
    assert version.tags["classical_divergence"] == "forward_kl"


@pytest.mark.slow
def test_a_student_with_another_tokenizer_learns_from_them_too(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> None:
    recipe: dict[str, Any] = tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
    recipe["objective"] = {"ce": 0.0, "uld": 0.0, "hybrid": 1.0, "projection": 1.0, "top_ids": 48}
    recipe["training"] |= {"steps": 14}
    facts = run_training(parse_recipe(recipe))
    client = mlflow.MlflowClient(facts["tracking_uri"])
    for name in ("train/hybrid", "train/projection"):
        history = client.get_metric_history(facts["run_id"], name)
        values = [metric.value for metric in sorted(history, key=lambda metric: metric.step)]
        assert len(values) == 14
        assert values[-1] < 0.9 * values[0], name
    version = client.get_model_version_by_alias("tiny-student", "candidate")
    assert (version.tags["hybrid_weight"], version.tags["projection_weight"]) == ("1.0", "1.0")
