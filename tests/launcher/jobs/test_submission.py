"""What is checked before a job is sent: paths, the environment, secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.jobs.environment import job_environment
from launcher.jobs.submit import Submission, prepare_submission
from uld_ds.errors import UserError


@pytest.fixture
def root(tmp_path: Path, tiny_recipe: dict[str, Any]) -> Path:
    """A working directory with a recipe and its data, storage elsewhere."""
    tiny_recipe["run"]["storage"] = "/shared/runs"
    for name in ("train", "eval"):
        tiny_recipe["data"][name]["path"] = f"{name}.jsonl"
    write(tmp_path, tiny_recipe)
    return tmp_path


def write(root: Path, recipe: dict[str, Any]) -> None:
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def prepared(root: Path, *overrides: str, file: str | Path = "recipe.yaml", env: tuple[str, ...] = ()) -> Submission:
    return prepare_submission(root / file, overrides, root=root, exclude=[], environment=env)


def test_a_job_has_the_command_the_files_and_the_time_to_stop(root: Path) -> None:
    (root / "deep").mkdir()
    (root / "recipe.yaml").rename(root / "deep" / "my recipe.yaml")
    submission = prepared(root, "run.name=a", "training.steps=7", file="deep/my recipe.yaml", env=("A=b=c",))
    assert submission.command == (
        "python -m launcher train 'deep/my recipe.yaml' --set run.name=a --set training.steps=7"
    )
    assert submission.recipe.training.steps == 7
    assert {"deep/my recipe.yaml", "train.jsonl", "eval.jsonl"} <= set(submission.files)
    assert submission.num_bytes == sum(path.stat().st_size for path in submission.files.values())
    assert submission.environment == {"A": "b=c", "RAY_JOB_STOP_WAIT_TIME_S": "150"}
    assert submission.notes == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.storage=runs", "run.storage: 'runs' is relative: in a job it lies in a copy of the working directory"),
        ("tracking.uri=sqlite:///mlflow.db", "tracking.uri: 'mlflow.db' is relative"),
        ("teacher.model=./teacher", "teacher.model: './teacher' is relative"),
        ("teacher={source: stored, path: store}", "teacher.path: 'store' is relative"),
        ("data.train.path=none*.jsonl", "data.train.path: no file matches 'none*.jsonl' in the working directory"),
        ("data.eval.path=../eval.jsonl", "data.eval.path: '{parent}/eval.jsonl' is outside of the working directory"),
        ("student.tokenizer=./tok", "student.tokenizer: no file matches './tok'"),
        ("tracking.uri=http://u:pw@mlflow", "--set: tracking.uri holds a secret"),
    ],
)
def test_what_would_not_be_there(root: Path, override: str, message: str) -> None:
    (root.parent / "eval.jsonl").touch()
    with pytest.raises(UserError) as caught:
        prepared(root, override)
    assert str(caught.value).startswith(message.format(parent=root.parent))


def test_a_recipe_elsewhere_does_not_travel(root: Path) -> None:
    (root / "inner").mkdir()
    message = rf"^recipe: '{root}/recipe.yaml' is outside of the working directory '{root}/inner'"
    with pytest.raises(UserError, match=message):
        prepare_submission(root / "recipe.yaml", [], root=root / "inner", exclude=[], environment=[])


def test_absolute_paths_and_hub_ids_are_the_clusters(root: Path) -> None:
    files = prepared(root, "data.eval.path=/elsewhere/eval.jsonl", "teacher.model=org/large").files
    assert "train.jsonl" in files
    assert not any("elsewhere" in name for name in files)


def test_secrets_do_not_become_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-shown-anywhere")
    monkeypatch.setenv("SERVER", "http://user:not-shown-anywhere@host")
    for item in ("HF_TOKEN", "HF_TOKEN=not-shown-anywhere", "SERVER", "X=hf_0123456789abcdefghij"):
        with pytest.raises(UserError, match=r"secret.*give it to the nodes' own environment instead") as caught:
            job_environment([item], 1)
        assert "not-shown" not in str(caught.value)


def test_variables_that_override_the_recipe_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULD_DS__TRAINING__STEPS", "9")
    assert job_environment([], 1.5) == {"ULD_DS__TRAINING__STEPS": "9", "RAY_JOB_STOP_WAIT_TIME_S": "32"}
    monkeypatch.setenv("ULD_DS__TRACKING__URI", "http://u:pw@host")
    with pytest.raises(UserError, match=r"^ULD_DS__TRACKING__URI: ULD_DS__TRACKING__URI holds a secret"):
        job_environment([], 1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("UNSET_HERE", "UNSET_HERE is not set here"),
        ("1A=b", "'1A' is no variable's name"),
        ("RAY_JOB_STOP_WAIT_TIME_S=5", "RAY_JOB_STOP_WAIT_TIME_S=5 is shorter than cluster.grace_seconds 120 and 30"),
    ],
)
def test_variables_that_cannot_be_sent(item: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        job_environment([item], 120)
    assert str(caught.value).startswith(f"--env: {message}")


def test_a_reference_that_only_the_cluster_knows(root: Path, tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["run"]["storage"] = "${oc.env:ULD_TEST_SHARED}/runs"
    tiny_recipe["tracking"]["experiment"] = "${oc.env:ULD_TEST_EXPERIMENT,mine}"
    write(root, tiny_recipe)
    assert prepared(root).notes == ["the recipe takes from the cluster's own environment: ULD_TEST_SHARED"]
    tiny_recipe["training"]["steps"] = "${oc.decode:${oc.env:ULD_TEST_STEPS}}"
    write(root, tiny_recipe)
    with pytest.raises(UserError, match=r"\(not set here: ULD_TEST_SHARED, ULD_TEST_STEPS\); set them here, too"):
        prepared(root)


def test_secret_files_stay_behind(root: Path) -> None:
    (root / ".env").write_text("TOKEN=1")
    submission = prepared(root)
    assert ".env" not in submission.files
    assert submission.notes == ["not sent, they may hold secrets: .env"]
