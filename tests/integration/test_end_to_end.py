"""A whole run: two ranks under Ray, ZeRO-3 for both models, MLflow on sqlite, a registered student."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.drivers.train import run_training
from tests.helpers.tiny import tiny_recipe_in
from uld_ds.errors import UserError
from uld_ds.recipe import load_recipe, parse_recipe
from uld_ds.reporting.run_data import RunReport
from uld_ds.runs.phases import OTHER, PHASES
from uld_ds.runs.status import run_status

SECRETS = {
    "ROWS_API_KEY": "planted-for-the-rows",
    "MLFLOW_TRACKING_PASSWORD": "planted-for-mlflow",
    "HF_TOKEN": "planted-for-the-hub",
    "AWS_SECRET_ACCESS_KEY": "planted-for-a-bucket",
}


def held_out(path: str, api_key: str) -> Iterator[dict[str, str]]:
    """Rows from somewhere that asks for a key."""
    assert api_key == SECRETS["ROWS_API_KEY"]
    yield from map(json.loads, Path(path).read_text().splitlines())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Where a run writes, and where Ray does for it; its secrets are in the environment."""
    # Sockets lie in it, and their paths may have 107 characters.
    of_ray = Path(tempfile.mkdtemp(prefix="e2e", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in {**SECRETS, "RAY_TMPDIR": str(of_ray)}.items():
            patch.setenv(name, secret)
        yield tmp_path_factory.mktemp("end_to_end"), of_ray
    shutil.rmtree(of_ray, ignore_errors=True)


@pytest.fixture(scope="module")
def finished(
    folders: tuple[Path, Path], tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe and the facts of its finished run."""
    folder, _ = folders
    tree = tiny_recipe_in(folder, tiny_teacher, tiny_student, rows)
    arguments = {"path": tree["data"]["eval"]["path"], "api_key": "${oc.env:ROWS_API_KEY}"}
    tree["data"]["eval"] = {"source": "generator", "function": f"{__name__}:held_out", "arguments": arguments}
    (file := folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    recipe = load_recipe(file, environment={})
    return recipe.model_dump(mode="json"), run_training(recipe)


def test_a_secret_is_nowhere_in_what_was_written(
    finished: tuple[dict[str, Any], dict[str, Any]], folders: tuple[Path, Path]
) -> None:
    """Run folder, prepared data, logs, MLflow's database and artifacts, the report, Ray's own records."""
    assert finished[0]["data"]["eval"]["arguments"]["api_key"] == SECRETS["ROWS_API_KEY"]
    files = [item for folder in folders for item in folder.rglob("*") if item.is_file() and not item.is_symlink()]
    read = {file: file.read_bytes() for file in files}
    needles = {text for secret in SECRETS.values() for text in (secret, base64_of(secret))}
    found = [(str(file), text) for file, data in read.items() for text in needles if text.encode() in data]
    assert found == []
    # They were looked for where they would be.
    names = {file.name for file in read}
    assert {"recipe.yaml", "mlflow.db", "report.html", "environment.json", "progress.jsonl", "gcs_server.out"} <= names
    kept = [data for file, data in read.items() if file.name == "recipe.yaml" and b"api_key" in data]
    assert sum(b"***" in data for data in kept) >= 2, "the run's own copy and the tracked one"


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode().rstrip("=")[:-1]


def test_facts_are_complete_and_the_student_learned(finished: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, facts = finished
    for key in ("run_id", "model_name", "model_version", "tracking_uri", "export_dir", "tokens_per_second"):
        assert facts[key], key
    bits = facts["bits_per_byte"]
    assert bits["after"] < 0.9 * bits["before"]
    assert bits["teacher"] > 0
    assert facts["steps"] == 6
    assert 0.1 < facts["alignment_rate"] <= 1
    assert facts["peak_memory_bytes"] > 100e6
    assert facts["wall_seconds"] > 1


def test_mlflow_has_every_step_and_the_final_status(finished: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, facts = finished
    client = mlflow.MlflowClient(facts["tracking_uri"])
    run = client.get_run(facts["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.batch_size"] == "8"
    assert run.data.params["objective.normalise"] == "token", "by the name that older runs have"
    history = client.get_metric_history(facts["run_id"], "train/loss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].value == facts["final_loss"]
    for name in ["train/ce", "train/uld", "train/learning_rate", "train/gradient_norm", "tokens_per_second"]:
        assert len(client.get_metric_history(facts["run_id"], name)) == 6, name
    seconds = [run.data.metrics[f"seconds/{phase}"] for phase in (*PHASES, OTHER)]
    assert min(seconds) >= 0
    assert sum(seconds) == pytest.approx(run.data.metrics["seconds/total"])
    assert len(client.get_metric_history(facts["run_id"], "seconds/checkpoint")) == 2
    held_out = client.get_metric_history(facts["run_id"], "eval/bits_per_byte")
    assert [point.step for point in held_out] == [0, 3, 6]
    assert held_out[-1].value == facts["bits_per_byte"]["after"]
    artifacts = {item.path for item in client.list_artifacts(facts["run_id"])}
    assert {"recipe.yaml", "environment.json", "deepspeed", "alignment", "plots", "result.json"} <= artifacts
    (trained_on,) = [
        item.dataset for item in run.inputs.dataset_inputs if [tag.value for tag in item.tags] == ["training"]
    ]
    assert run.data.tags["data_digest"].startswith(trained_on.digest)
    assert json.loads(trained_on.profile)["examples"] == 48
    source = mlflow.data.get_source(trained_on)
    assert len(Path(source.load()).read_text().splitlines()) == 48


def test_its_folder_says_how_it_went(finished: tuple[dict[str, Any], dict[str, Any]]) -> None:
    recipe, facts = finished
    status = run_status(Path(recipe["run"]["storage"]) / "tiny")
    assert (status.state, status.step, status.restarts, status.workers) == ("finished", 6, 0, 2)
    assert status.held_out_bits_per_byte["after"] == facts["bits_per_byte"]["after"]
    assert status.last_checkpoint is not None
    assert status.last_checkpoint["step"] == 6
    assert sum(status.phase_shares.values()) == pytest.approx(1)
    # What the phases miss of a step is little, also where a step takes a tenth of a second.
    assert status.phase_shares[OTHER] < 0.1


def test_it_leaves_a_report(finished: tuple[dict[str, Any], dict[str, Any]]) -> None:
    recipe, facts = finished
    folder = Path(recipe["run"]["storage"]) / "tiny"
    page = (folder / "report.html").read_text()
    report = RunReport.read(folder)
    assert f"{facts['bits_per_byte']['after']:.4f} bits per byte of held-out answers" in page
    assert set(report.snapshots) == {"before", "teacher", "after"}
    spectra = {who: content["spectra"] for who, content in report.snapshots.items()}
    assert {len(found) for found in spectra.values()} == {len(report.places)}
    assert len(report.places) >= 6
    assert spectra["before"] != spectra["after"]
    for found in spectra.values():
        for item in found:
            p = [value for _, value in item["points"]]
            assert p == sorted(p, reverse=True)
            assert item["likeliest"][0][1] == pytest.approx(p[0], rel=1e-3)
    tokens = {who: content["calibration"]["tokens"] for who, content in report.snapshots.items()}
    # All held-out answer tokens of each side, ends of turns left out.
    assert tokens["before"] == tokens["after"] != tokens["teacher"]
    assert len(report.alignments) == 4
    assert [set(item) for item in report.answers] == [{"prompt", "given", "before", "after", "teacher"}] * 2
    client = mlflow.MlflowClient(facts["tracking_uri"])
    assert "report.html" in {item.path for item in client.list_artifacts(facts["run_id"])}


def test_export_is_a_directory_for_transformers_and_the_hub(finished: tuple[dict[str, Any], dict[str, Any]]) -> None:
    folder = Path(finished[1]["export_dir"])
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert AutoTokenizer.from_pretrained(folder).chat_template
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.eval_results[0].metric_value == round(finished[1]["bits_per_byte"]["after"], 6)


def test_registered_model_gives_the_exported_logits(
    finished: tuple[dict[str, Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, facts = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", facts["tracking_uri"])
    uri = "models:/tiny-student@candidate"
    components = mlflow.transformers.load_model(uri, return_type="components")
    ids = torch.arange(5, 45)[None]
    exported = AutoModelForCausalLM.from_pretrained(facts["export_dir"])
    with torch.no_grad():
        assert torch.equal(components["model"](ids).logits, exported(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(facts["export_dir"])
    text = "Return the größte element.\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert components["tokenizer"](text)["input_ids"] == tokenizer(text)["input_ids"]


def test_registered_model_answers_as_pyfunc(
    finished: tuple[dict[str, Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, facts = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", facts["tracking_uri"])
    model = mlflow.pyfunc.load_model("models:/tiny-student@candidate")
    assert model.metadata.signature is not None
    short, long = (model.predict({"prompt": "What does it do?"}, params={"max_new_tokens": n})[0] for n in (1, 40))
    assert len(short) < len(long)
    version = mlflow.MlflowClient(facts["tracking_uri"]).get_model_version_by_alias("tiny-student", "candidate")
    assert str(version.version) == facts["model_version"]
    assert float(version.tags["bits_per_byte_after"]) == facts["bits_per_byte"]["after"]
    requirements = mlflow.pyfunc.get_model_dependencies("models:/tiny-student@candidate")
    assert "transformers==" in Path(requirements).read_text()


def test_running_a_finished_run_again_changes_nothing(finished: tuple[dict[str, Any], dict[str, Any]]) -> None:
    recipe, facts = finished
    assert run_training(parse_recipe(recipe)) == facts
    versions = mlflow.MlflowClient(facts["tracking_uri"]).search_model_versions("name = 'tiny-student'")
    assert len(versions) == 1


def test_another_recipe_under_the_same_name_is_refused(finished: tuple[dict[str, Any], dict[str, Any]]) -> None:
    recipe, _ = finished
    other = recipe | {"training": recipe["training"] | {"steps": 7}}
    with pytest.raises(UserError, match=r"run.name: 'tiny' began with another recipe \(training.steps: 6 -> 7\)"):
        run_training(parse_recipe(other))


@pytest.mark.slow
def test_interrupted_run_resumes_to_the_same_weights(
    finished: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """Killed after the checkpoint of step 3, continued by running it again: same student, bit for bit."""
    recipe, facts = finished
    recipe = recipe | {"run": {"name": "tiny", "storage": str(tmp_path)}}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "launcher", "train", str(file), "--json"]
    first = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "tiny" / "checkpoint_manager_snapshot.json"
    while not (checkpoint.is_file() and "checkpoint_000000003" in checkpoint.read_text()):
        assert first.poll() is None, "finished before it could be killed"
        time.sleep(0.05)
    family = [first, *psutil.Process(first.pid).children(recursive=True)]
    for process in family:
        os.kill(process.pid, signal.SIGKILL)
    first.wait()
    second = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    again = json.loads(second.stdout.splitlines()[-1])
    assert again["final_loss"] == facts["final_loss"]
    assert again["bits_per_byte"] == facts["bits_per_byte"]
    weights = [AutoModelForCausalLM.from_pretrained(f["export_dir"]).state_dict() for f in (facts, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # The very end interrupted: everything was registered, only the result was not written yet.
    (tmp_path / "tiny" / "result.json").unlink()
    third = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(third.stdout.splitlines()[-1])["model_version"] == again["model_version"]
    client = mlflow.MlflowClient(again["tracking_uri"])
    # One run, in which no step is missing and none is there twice.
    (run,) = client.search_runs([client.get_run(again["run_id"]).info.experiment_id])
    assert (run.info.run_id, run.info.status) == (again["run_id"], "FINISHED")
    for name, steps in {"train/loss": list(range(1, 7)), "eval/bits_per_byte": [0, 3, 6]}.items():
        assert [point.step for point in client.get_metric_history(again["run_id"], name)] == steps, name
    assert len(client.search_model_versions("name = 'tiny-student'")) == 1
    assert len(client.search_logged_models([client.get_run(again["run_id"]).info.experiment_id])) == 1
