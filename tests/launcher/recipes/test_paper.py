"""The paper's recipe has the paper's numbers, and its three commands run, on tiny models and hand-made rows."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app
from uld_ds.recipe import load_recipe

PAPER = Path(str(resources.files("launcher.recipes") / "paper.yaml"))
SQUAD = Path(__file__).parents[2] / "fixtures" / "tasks" / "squad.jsonl"


def test_the_papers_settings() -> None:
    recipe = load_recipe(PAPER, environment={})
    objective, training = recipe.objective, recipe.training
    assert (objective.ce, objective.uld) == (1.0, 1.5)
    assert (objective.student_temperature, objective.teacher_temperature) == (1.0, 1.0)
    assert (objective.alignment, objective.normalize) == ("positional", "sample")
    assert (objective.skip_student_end, objective.skip_teacher_end) == (True, False)
    assert (training.optimizer.learning_rate, training.optimizer.weight_decay) == (1e-6, 0.1)
    assert (training.schedule.kind, training.schedule.warmup) == ("one_cycle", 0.1)
    assert (training.batch_size, training.epochs) == (8, 5)
    assert recipe.generation.temperature == 0
    assert (recipe.data.task, recipe.data.shots) == ("squad", 5)


@pytest.fixture
def small(tmp_path: Path, tiny_teacher: Path, tiny_student: Path) -> Path:
    """The same recipe with what a test has."""
    recipe: dict[str, Any] = yaml.safe_load(PAPER.read_text())
    rows = {"source": "files", "path": str(SQUAD)}
    recipe["run"]["storage"] = str(tmp_path)
    plain = {"precision": "fp32", "prompt_template": "{prompt}\nAnswer: ", "max_length": 500}
    recipe["teacher"] |= {**plain, "model": str(tiny_teacher)}
    recipe["student"] |= {**plain, "model": str(tiny_student)}
    train = {"source": "files", "path": str(tmp_path / "paper" / "answers" / "train.parquet")}
    recipe["data"] |= {"train": train, "eval": rows, "shots": 0}
    # Random models do not end their turns.
    recipe["generation"] |= {"prompts": rows, "max_new_tokens": 6, "drop": ["empty"]}
    recipe["training"] |= {"epochs": 1}
    recipe["evaluation"] = {"sample_tokens": 4}
    recipe["cluster"] = {"workers": 1, "accelerator": "cpu"}
    file = tmp_path / "paper.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def run(*words: str) -> Any:
    result = CliRunner().invoke(app, [*words, "--json"])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_from_raw_rows_to_scores(small: Path) -> None:
    answered = run("generate", str(small))
    assert answered["prompts"] == 12
    trained = run("train", str(small))
    assert trained["steps"] == -(-answered["train"] // 8)
    evaluated = run("evaluate", trained["export_dir"], str(small))
    assert evaluated["prompts"] == 12
    # One definition of bits per byte, whether training or evaluating measures it.
    assert evaluated["bits_per_byte"]["mean"] == pytest.approx(trained["bits_per_byte"]["after"], rel=1e-4)
