"""Promotion: measured on the same rows, refused when worse, written down; lineage: the chain behind a version."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher import cli
from uld_ds.registry.log_student import log_student
from uld_ds.registry.promotion import Comparison

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], registry: mlflow.MlflowClient) -> Run:
    """Runs the command line in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.tracking_uri)

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uld-ds", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return run_main


@pytest.fixture(scope="module")
def registry(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> mlflow.MlflowClient:
    """Two versions of a student: the first as it was made, the second with a head that says nothing."""
    from tests.helpers.tiny import tiny_recipe_in

    folder = tmp_path_factory.mktemp("promotion")
    tree = tiny_recipe_in(folder, tiny_teacher, tiny_student, rows)
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(folder / "artifacts").as_uri())
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    for number in (1, 2):
        run_id = client.create_run(experiment, run_name=f"run-{number}").info.run_id
        client.log_text(run_id, yaml.safe_dump(tree), "recipe.yaml")
        model = AutoModelForCausalLM.from_pretrained(tiny_student)
        if number == 2:
            # All tokens alike: less wrong than random weights.
            torch.nn.init.zeros_(model.lm_head.weight)
        facts = {
            "teacher": "org/large",
            "teacher_digest": "sha256:1",
            "data_digest": "ab",
            "recipe_digest": "cd",
            "code_revision": "ef",
            "bits_per_byte_after": 3.0,
        }
        log_student(
            client,
            run_id,
            model,
            tokenizer,
            name="student",
            alias="candidate",
            example={"prompt": "x"},
            facts=facts,
            description="",
            workspace=folder,
        )
        client.set_terminated(run_id, "FINISHED")
    return client


def holder(client: mlflow.MlflowClient) -> str:
    return str(client.get_model_version_by_alias("student", "champion").version)


def test_better_versions_are_promoted_and_worse_ones_are_not(run: Run, registry: mlflow.MlflowClient) -> None:
    status, out, err = run("promote", "student", "1", "--alias", "champion", "--json")
    assert status == 0, err
    first = json.loads(out)
    assert (first["incumbent"], first["worse"], first["moved"], holder(registry)) == (None, [], True, "1")

    status, out, err = run("promote", "student", "2", "--alias", "champion", "--json")
    assert status == 0, err
    second = json.loads(out)
    values = second["metrics"]["bits_per_byte"]
    assert values["incumbent"] == first["metrics"]["bits_per_byte"]["candidate"]
    assert values["candidate"] < 0.99 * values["incumbent"]
    assert holder(registry) == "2"
    assert len(second["held_out_digest"]) == 64
    for version in ("1", "2"):
        assert json.loads(registry.get_model_version("student", version).tags["promotion.champion"]) == second

    status, out, err = run("promote", "student", "1", "--alias", "champion")
    assert (status, out, holder(registry)) == (1, "", "2")
    assert "error: version 1 is worse than 2, which keeps 'champion': bits_per_byte " in err
    assert json.loads(registry.get_model_version("student", "2").tags["promotion.champion"])["moved"] is False

    status, out, err = run("promote", "student", "1", "--alias", "champion", "--tolerance", "1")
    assert (status, holder(registry)) == (0, "1"), err
    run("promote", "student", "2", "--alias", "champion")
    status, out, err = run("promote", "student", "1", "--alias", "champion", "--force", "--reason", "a demo", "--json")
    assert (status, holder(registry)) == (0, "1"), err
    forced = json.loads(out)
    assert (forced["worse"], forced["reason"]) == (["bits_per_byte"], "a demo")
    assert forced["forced_by"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student", "9"], "VERSION: 'student' has no version 9; choose one of 1, 2"),
        (["nobody", "1"], "NAME: no registered model 'nobody'; correct the name, or MLFLOW_TRACKING_URI"),
        (["student", "1", "--force"], "--force: has no reason; say why with --reason TEXT"),
        (["student", "1", "--reason", "x"], "--reason: has no effect without --force; leave it out, or add --force"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: list[str], message: str) -> None:
    status, out, err = run("promote", *arguments, "--alias", "other")
    assert (status, out, err) == (2, "", f"error: {message}\n")


def test_an_alias_that_moved_meanwhile_stays(registry: mlflow.MlflowClient) -> None:
    from uld_ds.errors import RunError
    from uld_ds.registry.promotion import promote

    registry.set_registered_model_alias("student", "moving", "2")
    candidate = registry.get_model_version("student", "1")
    with pytest.raises(RunError, match="has moved to version 2 meanwhile"):
        promote(registry, candidate, None, "moving", [Comparison("f1", 1.0, None)], tolerance=0.0, data_digest="")
    assert str(registry.get_model_version_by_alias("student", "moving").version) == "2"


def test_promoting_makes_the_link_that_an_older_registration_lacks(registry: mlflow.MlflowClient) -> None:
    from uld_ds.registry.promotion import promote

    candidate = registry.get_model_version("student", "1")
    (output,) = registry.get_run(candidate.run_id).outputs.model_outputs
    registry.delete_logged_model_tag(output.model_id, "mlflow.modelVersions")
    promote(registry, candidate, None, "linked", [Comparison("f1", 1.0, None)], tolerance=0.0, data_digest="")
    linked = registry.get_logged_model(output.model_id).tags["mlflow.modelVersions"]
    assert json.loads(linked) == [{"name": "student", "version": 1}]


def test_worse_depends_on_the_metric_and_the_tolerance() -> None:
    assert Comparison("bits_per_byte", 2.03, 2.0).is_worse(0.01)
    assert not Comparison("bits_per_byte", 2.02, 2.0).is_worse(0.0101)
    assert not Comparison("bits_per_byte", 1.0, 2.0).is_worse(0.0)
    assert Comparison("f1", 49.0, 50.0).is_worse(0.01)
    assert not Comparison("f1", 49.6, 50.0).is_worse(0.01)
    assert not Comparison("f1", 0.0, None).is_worse(0.0)


def test_lineage_is_the_whole_chain(run: Run, registry: mlflow.MlflowClient) -> None:
    status, out, err = run("lineage", "student@candidate", "--json")
    assert (status, err) == (0, "")
    chain = json.loads(out)
    assert list(chain) == ["student", "run", "teacher", "store", "student_base", "data", "recipe", "code", "results"]
    assert (chain["student"]["name"], chain["student"]["version"]) == ("student", "2")
    assert (chain["run"]["name"], chain["run"]["status"]) == ("run-2", "FINISHED")
    assert chain["teacher"] == {"model": "org/large", "digest": "sha256:1"}
    assert chain["store"] is None
    assert (chain["data"]["digest"], chain["recipe"]["digest"], chain["code"]["revision"]) == ("ab", "cd", "ef")
    status, out, _ = run("lineage", "student/1")
    assert status == 0
    assert "run-1" in out


def test_lineage_of_nobody_is_one_line(run: Run) -> None:
    status, _, err = run("lineage", "student@nobody")
    assert status == 2
    assert err.startswith("error: NAME@ALIAS: no version of 'student' has the alias 'nobody'; ")
    assert run("lineage", "student")[0] == 2
