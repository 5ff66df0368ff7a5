"""A run and a real MLflow server that goes down in the middle of it; the student it serves afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from tests.helpers.mlflow_server import Server, end_group, free_port, wait_until_it_answers
from tests.helpers.tiny import tiny_recipe_in

pytestmark = pytest.mark.slow

STEPS = 40
SECRET = "never-to-be-seen"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def outlived(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_teacher: Path,
    tiny_student: Path,
    rows: list[dict[str, str]],
    server: Server,
) -> tuple[dict[str, Any], Path]:
    """Facts and folder of a run whose server was killed after some steps, and was back before the end."""
    folder = tmp_path_factory.mktemp("outlived")
    tree = tiny_recipe_in(folder, tiny_teacher, tiny_student, rows)
    tree["training"] |= {"steps": STEPS, "checkpoint_every": 10}
    tree["evaluation"] |= {"every": 10}
    tree["tracking"] = {"uri": server.uri, "system_metrics": True, "system_metrics_every": 0.5, "patience": 200}
    tree["student"]["system_prompt"] = "${oc.env:SOME_API_KEY}"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "launcher", "train", str(folder / "recipe.yaml"), "--json"]
    environment = {**os.environ, "SOME_API_KEY": SECRET}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True, env=environment)
        try:
            journal = folder / "runs" / "tiny" / "metrics" / "train.jsonl"
            wait_for_step(journal, 3, process)
            server.kill()
            down = last_step(journal)
            # Training goes on for as long as the server is away.
            wait_for_step(journal, STEPS, process)
            assert down < STEPS
            server.start()
            process.wait(timeout=300)
        finally:
            if process.poll() is None:
                end_group(process)
    assert process.returncode == 0, (folder / "err").read_text()
    return json.loads((folder / "out").read_text().splitlines()[-1]), folder


def last_step(journal: Path) -> int:
    return max((json.loads(line)["step"] for line in journal.read_text().splitlines()), default=0)


def wait_for_step(journal: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while not (journal.is_file() and last_step(journal) >= step):
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < end
        time.sleep(0.1)


def test_every_metric_is_there_once_and_in_order(outlived: tuple[dict[str, Any], Path], server: Server) -> None:
    facts, _ = outlived
    client = mlflow.MlflowClient(server.uri)
    run = client.get_run(facts["run_id"])
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "train/uld", "seconds/total", "tokens_per_second"):
        points = client.get_metric_history(facts["run_id"], name)
        assert [point.step for point in points] == list(range(1, STEPS + 1)), name
    assert [p.step for p in client.get_metric_history(facts["run_id"], "eval/bits_per_byte")] == [0, 10, 20, 30, 40]
    name = "system/node-0/cpu_utilization_percentage"
    samples = [point.step for point in client.get_metric_history(facts["run_id"], name)]
    assert len(samples) > 3
    assert samples == list(range(len(samples)))


def test_the_record_is_complete(outlived: tuple[dict[str, Any], Path], server: Server) -> None:
    facts, folder = outlived
    client = mlflow.MlflowClient(server.uri)
    run = client.get_run(facts["run_id"])
    inputs = {tag.value: item.dataset for item in run.inputs.dataset_inputs for tag in item.tags}
    assert set(inputs) == {"training", "evaluation"}
    version = client.get_model_version_by_alias("tiny-student", "candidate")
    assert version.tags["data_digest"].startswith(inputs["training"].digest)
    assert version.tags["eval_data_digest"].startswith(inputs["evaluation"].digest)
    for tag in (
        "teacher", "teacher_digest", "teacher_tokenizer_digest", "student_tokenizer_digest", "recipe_digest",
        "uld_weight", "alignment_rate", "bits_per_byte_before", "bits_per_byte_after", "bits_per_byte_teacher",
        "code_revision",
    ):  # fmt: skip
        assert version.tags[tag], tag
    place = Path(client.download_artifacts(facts["run_id"], "", str(folder)))
    for file in (
        "recipe.yaml", "environment.json", "deepspeed/student.json", "deepspeed/teacher.json", "alignment/report.json",
        "alignment/example-1.html", "plots/loss.svg", "plots/bits_per_byte.svg", "plots/phases.svg", "result.json",
    ):  # fmt: skip
        assert (place / file).stat().st_size > 100, file
    assert "plots%2Floss.svg" in version.description
    assert json.loads((place / "result.json").read_text())["run_id"] == facts["run_id"]


def test_no_secret_is_in_the_record(outlived: tuple[dict[str, Any], Path], server: Server) -> None:
    facts, folder = outlived
    run_dir = folder / "runs" / "tiny"
    for file in [
        run_dir / "recipe.yaml",
        run_dir / "progress.jsonl",
        *run_dir.glob("logs/*"),
        *run_dir.glob("metrics/*"),
    ]:
        assert SECRET not in file.read_text(), file
    client = mlflow.MlflowClient(server.uri)
    run = client.get_run(facts["run_id"])
    assert run.data.params["student.system_prompt"] == "***"
    version = client.get_model_version_by_alias("tiny-student", "candidate")
    (model,) = client.search_logged_models([run.info.experiment_id])
    for said in (run.to_dictionary(), version.tags, version.description, model.tags):
        assert SECRET not in str(said)
    stored = [file for file in Path(server.artifacts).rglob("*") if file.is_file()]
    assert len(stored) > 20
    for file in stored:
        assert SECRET.encode() not in file.read_bytes(), file


@pytest.fixture(scope="module")
def endpoint(outlived: tuple[dict[str, Any], Path], server: Server) -> Iterator[str]:
    """The registered student behind ``mlflow models serve``."""
    _, folder = outlived
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny-student@candidate"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    variables = {**os.environ, "MLFLOW_TRACKING_URI": server.uri}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log, env=variables)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/ping", process, 150)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        end_group(process)


@pytest.mark.parametrize(
    "request_body",
    [
        {"messages": [{"role": "user", "content": "What?"}], "max_new_tokens": 4},
        {"prompt": "What?", "max_new_tokens": 4},
    ],
)
def test_the_student_is_served(
    endpoint: str, server: Server, request_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = urllib.request.Request(
        endpoint, json.dumps(request_body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answers = json.loads(response.read())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    student = mlflow.pyfunc.load_model("models:/tiny-student@candidate")
    limit = {"max_new_tokens": request_body.pop("max_new_tokens")}
    assert answers == student.predict(request_body, params=limit)
    assert isinstance(answers[0], str)
