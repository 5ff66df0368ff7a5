"""Jobs on real clusters of two nodes, with token authentication off and on."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.cluster.connect import AUTHENTICATION_FIX
from tests.helpers.ray_nodes import RAY, TOKEN, Nodes, auth_environment, ray_nodes
from tests.helpers.tiny import tiny_recipe_in

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[3]
ULD_DS = [sys.executable, "-m", "launcher"]


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> dict[str, Any]:
    """Of a working directory with relative data, storage elsewhere: a run that takes too long to wait for."""
    folder = tmp_path_factory.mktemp("work")
    recipe = tiny_recipe_in(folder, tiny_teacher, tiny_student, rows)
    recipe["run"] = {"name": "job", "storage": str(tmp_path_factory.mktemp("shared") / "runs")}
    for name in ("train", "eval"):
        recipe["data"][name]["path"] = f"{name}.jsonl"
    recipe["training"] |= {"steps": 20_000, "checkpoint_every": 100_000}
    recipe["evaluation"] = {"sample_tokens": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return {**recipe, "folder": folder}


@pytest.fixture(scope="module")
def path() -> Iterator[None]:
    """Nodes are started from an environment that is activated, and with this package installed."""
    before = {name: os.environ.get(name) for name in ("PATH", "PYTHONPATH")}
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before['PATH']}"
    os.environ["PYTHONPATH"] = str(ROOT)
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="module")
def open_nodes(path: None) -> Iterator[Nodes]:
    with ray_nodes(2, dashboard=True) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def closed_nodes(path: None) -> Iterator[Nodes]:
    with ray_nodes(2, dashboard=True, token=TOKEN) as nodes:
        yield nodes


def run_dir(recipe: dict[str, Any], name: str) -> Path:
    return Path(recipe["run"]["storage"]) / name


def command(nodes: Nodes, *words: str) -> list[str]:
    return [*ULD_DS, *words, "--address", nodes.dashboard]


def wait_for_step(folder: Path, step: int) -> None:
    for _ in range(1800):
        with suppress(OSError):
            if f'"step": {step},' in (folder / "progress.jsonl").read_text():
                return
        time.sleep(0.1)
    raise AssertionError(f"no step {step}")


def listed(nodes: Nodes, *words: str) -> dict[str, Any]:
    """Jobs by their ids."""
    done = nodes.run(*command(nodes, "jobs", "--json", *words))
    assert done.returncode == 0, done.stderr
    return {job["job"]: job for job in json.loads(done.stdout)}


def test_sent_stopped_and_sent_again(open_nodes: Nodes, recipe: dict[str, Any]) -> None:
    """The whole life of a job, without authentication."""
    folder, nodes = recipe["folder"], open_nodes
    sent = nodes.run(
        *command(nodes, "submit", "recipe.yaml", "--no-wait", "--json", "--env", "ULD_TEST=seen"),
        cwd=folder,
        # Neither of them may win over the address that was given.
        environment={"RAY_ADDRESS": "127.0.0.9:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.9:1"},
    )
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout) == {
        "job": "job", "run": "job", "address": nodes.dashboard, "status": "PENDING", "exit_status": None,
    }  # fmt: skip
    wait_for_step(run_dir(recipe, "job"), 5)

    job = listed(nodes)["job"]
    assert (job["status"], job["run"], job["run_dir"]) == ("RUNNING", "job", str(run_dir(recipe, "job")))
    progress = job["progress"]
    assert (progress["source"], progress["total"]) == ("run folder", 20_000)
    assert progress["step"] >= 5
    assert 0 < progress["loss"] < 20
    assert progress["seconds_left"] > 10

    twice = nodes.run(*command(nodes, "submit", "recipe.yaml"), cwd=folder)
    assert twice.returncode == 2
    assert twice.stderr.splitlines()[-1].startswith("error: run.name: 'job' is under way as job 'job'; stop that first")

    stopped = nodes.run(RAY, "job", "stop", "job", "--address", nodes.dashboard)
    assert stopped.returncode == 0, stopped.stderr
    (checkpoint,) = run_dir(recipe, "job").glob("checkpoint_0*")
    step = int(checkpoint.name.removeprefix("checkpoint_"))
    assert listed(nodes) == {}
    assert listed(nodes, "--all")["job"]["status"] == "STOPPED"

    # Sent again, it goes on from there.
    process = subprocess.Popen(
        command(nodes, "submit", "recipe.yaml", "--json"),
        cwd=folder, env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_step(run_dir(recipe, "job"), step + 1)
    # Nobody can be asked: it detaches.
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["status"] == "DETACHED"
    assert "left: job 'job-2' goes on" in err
    assert listed(nodes)["job-2"]["status"] == "RUNNING"
    nodes.run(RAY, "job", "stop", "job-2", "--address", nodes.dashboard)


def test_ctrl_c_at_a_terminal_stops_it(open_nodes: Nodes, recipe: dict[str, Any]) -> None:
    """It asks; after "s" the job writes a checkpoint, and the status is 143."""
    nodes, folder = open_nodes, recipe["folder"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command(nodes, "submit", "recipe.yaml", "--set", "run.name=asked"),
        cwd=folder, env=nodes.environment, stdin=follower, stdout=subprocess.DEVNULL, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    wait_for_step(run_dir(recipe, "asked"), 3)
    process.send_signal(signal.SIGINT)
    said = ""
    while "[s]top it, or [d]etach?" not in said:
        said += os.read(leader, 4096).decode()
    os.write(leader, b"s\n")
    with suppress(OSError):  # the terminal's other end is closed
        while piece := os.read(leader, 4096):
            said += piece.decode()
    assert process.wait(60) == 143, said
    assert "asked it to stop" in said
    assert "job 'asked' stopped" in said
    assert len(list(run_dir(recipe, "asked").glob("checkpoint_0*"))) == 1


def test_a_job_that_fails_has_its_commands_status(open_nodes: Nodes, recipe: dict[str, Any]) -> None:
    done = open_nodes.run(
        *command(open_nodes, "submit", "recipe.yaml", "--set", "run.name=gpu", "--set", "cluster.accelerator=gpu"),
        cwd=recipe["folder"],
    )
    assert done.returncode == 2, done.stderr
    assert "error: cluster.workers: 2 workers need a GPU each, the cluster has 0; lower it" in done.stderr
    assert done.stderr.splitlines()[-1] == "job 'gpu' failed"


def test_with_a_token_both_ways(closed_nodes: Nodes, recipe: dict[str, Any]) -> None:
    """To the end, through ``uld-ds submit`` and through Ray's own command; without the token, nobody gets in."""
    nodes, folder = closed_nodes, recipe["folder"]
    short = ["--set", "training.steps=6", "--set", "run.name=token"]
    for environment in (auth_environment(None), auth_environment("f" * 32)):
        refused = nodes.run(*command(nodes, "submit", "recipe.yaml", *short), cwd=folder, environment=environment)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.splitlines()[-1] == (
            f"error: --address: the Ray cluster at '{nodes.dashboard}' refuses you; set RAY_AUTH_MODE as the cluster "
            "has it, and RAY_AUTH_TOKEN (or ~/.ray/auth_token) to its token"
        )
    done = nodes.run(*command(nodes, "submit", "recipe.yaml", "--json", *short), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["status"] == "SUCCEEDED"
    assert "step 6/6  loss " in done.stderr

    plain = ["python", "-m", "launcher", "train", "recipe.yaml", "--set", "training.steps=6", "--set", "run.name=plain"]
    done = nodes.run(RAY, "job", "submit", "--address", nodes.dashboard, "--working-dir", ".", "--", *plain, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((run_dir(recipe, name) / "result.json").read_text()) for name in ("token", "plain")]
    assert results[0]["final_loss"] == results[1]["final_loss"]
    assert "`ray job stop` kills this job after 3 s" in done.stdout
    # Nothing of ours is in the metadata of that job: its log tells how far it came.
    job = next(job for job in listed(nodes, "--all").values() if job["run"] is None)
    assert (job["progress"]["source"], job["progress"]["step"], job["progress"]["total"]) == ("job log", 6, 6)


def test_joining_without_the_token_is_one_line(closed_nodes: Nodes, recipe: dict[str, Any]) -> None:
    for environment in (auth_environment(None), auth_environment("f" * 32)):
        done = closed_nodes.run(
            *ULD_DS, "train", "recipe.yaml", "--set", "run.name=none",
            cwd=recipe["folder"], environment={**environment, "RAY_ADDRESS": closed_nodes.address},
        )  # fmt: skip
        assert done.returncode == 2, done.stderr[-2000:]
        line = done.stderr.splitlines()[-1]
        assert line.startswith("error: RAY_ADDRESS: ")
        assert f"at '{closed_nodes.address}'" in line
        assert AUTHENTICATION_FIX in line
