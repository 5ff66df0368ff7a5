"""The MLflow component's server, started with the Deployment's own arguments and environment, on a real Postgres."""

from __future__ import annotations

import base64
import glob
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.helpers.mlflow_server import free_port, wait_until_it_answers
from tests.k8s.rendering import needs_kubectl, only, render

pytestmark = [pytest.mark.slow, needs_kubectl]
# What k8s/README.md has people put into the Secret.
SECRET = {
    "postgres-password": "a-password-of-the-database",
    "mlflow-username": "admin",
    "mlflow-password": "a-password-of-the-server",
    "mlflow-session-key": "0123456789abcdef",
}
NOBODY = 65534


def postgres_program(name: str) -> str:
    """Debian keeps the server's programs off the PATH."""
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))), None)  # noqa: PTH207
    if found is None:
        pytest.skip(f"needs Postgres: {name} is not installed")
    return found


def as_somebody() -> dict[str, Any]:
    """Postgres refuses to run as root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Postgres as the StatefulSet makes it; its port."""
    initdb, server, createdb = (postgres_program(name) for name in ("initdb", "postgres", "createdb"))
    # Not below pytest's own folder, which others may not enter; the name of a socket is short.
    folder = Path("/tmp") / f"uld-pg-{os.getpid()}"
    folder.mkdir()
    (password := folder / "password").write_text(SECRET["postgres-password"])
    if as_somebody():
        for path in (folder, password):
            os.chown(path, NOBODY, NOBODY)
    data, run = str(folder / "data"), {"check": True, "capture_output": True, **as_somebody()}
    arguments = ["--username=mlflow", "--auth=scram-sha-256", f"--pwfile={password}", f"--pgdata={data}"]
    subprocess.run([initdb, *arguments], **run)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)]
    process = subprocess.Popen(
        [server, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_somebody()
    )
    environment = {**os.environ, "PGPASSWORD": SECRET["postgres-password"]}
    try:
        for _ in range(100):
            made = subprocess.run(
                [createdb, "--host=127.0.0.1", f"--port={port}", "--username=mlflow", "mlflow"],
                env=environment,
                capture_output=True,
            )
            if made.returncode == 0:
                break
            assert process.poll() is None
            time.sleep(0.1)
        else:
            raise AssertionError(made.stderr)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: int) -> Iterator[tuple[str, Path]]:
    """The component's server: its address, and where its artifacts are."""
    for module in ("flask_wtf", "psycopg2"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install 'uld-ds[mlflow-server]'")
    folder = tmp_path_factory.mktemp("mlflow")
    objects = render("overlays/cpu-small")
    port = free_port()

    def here(text: str) -> str:
        """The same on this machine."""
        for there, this in {
            "mlflow-postgres:5432": f"127.0.0.1:{database}",
            "/etc/mlflow": str(folder),
            "/artifacts": str(folder / "artifacts"),
            "--port=5000": f"--port={port}",
            "127.0.0.1:5000": f"127.0.0.1:{port}",
        }.items():
            text = text.replace(there, this)
        return text

    (container,) = only(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    (folder / "basic_auth.ini").write_text(here(only(objects, "ConfigMap", "mlflow-auth")["data"]["basic_auth.ini"]))
    environment = {**os.environ, **only(objects, "ConfigMap", "mlflow-environment")["data"]}
    for variable in container["env"]:
        environment[variable["name"]] = SECRET[variable["valueFrom"]["secretKeyRef"]["key"]]
    environment = {name: here(value) for name, value in environment.items()} | {"HOME": os.environ["HOME"]}
    program, *arguments = [here(argument) for argument in container["args"]]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", program, *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", process, 180)
        yield f"http://127.0.0.1:{port}", folder / "artifacts"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answer(url: str, host: str, *, password: str | None = None) -> int:
    """Status of a GET under a Host header."""
    headers = {"Host": host}
    if password is not None:
        credentials = base64.b64encode(f"{SECRET['mlflow-username']}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {credentials}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_probes_need_no_name_and_no_password(server: tuple[str, Path]) -> None:
    """A kubelet asks by the pod's address."""
    assert answer(f"{server[0]}/health", "10.1.2.3:5000") == 200


def test_only_known_names_and_the_right_password(server: tuple[str, Path]) -> None:
    experiments = f"{server[0]}/api/2.0/mlflow/experiments/search?max_results=1"
    right = SECRET["mlflow-password"]
    assert answer(experiments, "evil.example", password=right) == 403
    for host in ("mlflow:5000", "mlflow.uld-ds.svc.cluster.local:5000"):
        assert answer(experiments, host) == 401
        assert answer(experiments, host, password="wrong") == 401
        assert answer(experiments, host, password=right) == 200


def test_a_run_records_itself(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the names under which the RayJob's pods get the same Secret's values."""
    uri, artifacts = server
    job = only(render("overlays/cpu-small"), "RayJob")
    container = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    for variable in container["env"]:
        key = variable["valueFrom"]["secretKeyRef"]["key"]
        if key in SECRET:
            monkeypatch.setenv(variable["name"], SECRET[key])
    client = mlflow.MlflowClient(uri)
    run = client.create_run(client.create_experiment("uld-ds"))
    client.log_metric(run.info.run_id, "loss", 0.5)
    (file := tmp_path / "note.txt").write_text("kept")
    client.log_artifact(run.info.run_id, str(file))
    assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
    assert [found.read_text() for found in artifacts.rglob("note.txt")] == ["kept"]
