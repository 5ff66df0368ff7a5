"""Training across Ray nodes: two of them on loopback addresses of this machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.ray_nodes import Nodes, clean_environment, ray_nodes
from tests.helpers.tiny import tiny_recipe_in

pytestmark = pytest.mark.cluster
TRAIN = [sys.executable, "-m", "launcher", "train"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes with one CPU each."""
    with ray_nodes(2) as found:
        yield found


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]
) -> dict[str, Any]:
    recipe = tiny_recipe_in(tmp_path_factory.mktemp("several_nodes"), tiny_teacher, tiny_student, rows)
    assert recipe["teacher"].get("sharding", "zero3") == "zero3"
    return recipe


def written(nodes: Nodes, recipe: dict[str, Any], name: str, **cluster: Any) -> tuple[list[str], Path]:
    """A variant of the recipe: the command that runs it, the run's folder."""
    storage = Path(recipe["run"]["storage"])
    storage.mkdir(exist_ok=True)
    changed = recipe | {"run": {**recipe["run"], "name": name}, "cluster": recipe["cluster"] | cluster}
    (file := storage / f"{name}.yaml").write_text(yaml.safe_dump(changed))
    return [*TRAIN, str(file), "--json"], storage / name


def train(nodes: Nodes, recipe: dict[str, Any], name: str, **cluster: Any) -> tuple[Any, Path]:
    """Runs a variant of the recipe on the cluster: the finished command, the run's folder."""
    command, run_dir = written(nodes, recipe, name, **cluster)
    # Start-up takes seconds on a machine of its own, and minutes beside other work.
    return nodes.run(*command, environment={"RAY_ADDRESS": nodes.address}, timeout=900), run_dir


def places(run_dir: Path) -> list[str]:
    """The address each rank ran on."""
    logs = sorted((run_dir / "logs").glob("rank-*.log"))
    return [re.findall(r"rank \d of \d on (\S+): cpu", log.read_text())[-1] for log in logs]


def test_spread_over_nodes_gives_the_loss_of_one_node(nodes: Nodes, recipe: dict[str, Any]) -> None:
    """One worker per node, the teacher's shards across both, and not one bit different."""
    done, run_dir = train(nodes, recipe, "spread", placement_strategy="SPREAD")
    assert done.returncode == 0, done.stderr[-3000:]
    spread = json.loads(done.stdout.splitlines()[-1])
    assert sorted(places(run_dir)) == ["127.0.0.2", "127.0.0.3"]
    # Each rank's share of the student's state was written by its own node.
    shards = list((run_dir / "checkpoint_000000006" / "state").glob("zero_pp_rank_*_optim_states.pt"))
    assert len(shards) == 2

    alone = recipe | {"run": {**recipe["run"], "name": "alone"}}
    (file := run_dir.parent / "alone.yaml").write_text(yaml.safe_dump(alone))
    done = subprocess.run(
        [*TRAIN, str(file), "--json"], capture_output=True, text=True, timeout=240, env=clean_environment(), check=True
    )
    one_node = json.loads(done.stdout.splitlines()[-1])
    assert len(set(places(run_dir.parent / "alone"))) == 1
    assert spread["final_loss"] == one_node["final_loss"]
    assert spread["bits_per_byte"] == one_node["bits_per_byte"]
    steps = [
        [line for line in (folder / "progress.jsonl").read_text().splitlines() if '"step"' in line]
        for folder in (run_dir, run_dir.parent / "alone")
    ]
    losses = [[json.loads(line)["train/loss"] for line in lines if "train/loss" in line] for lines in steps]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


def test_what_can_never_be_placed_is_said_at_once(nodes: Nodes, recipe: dict[str, Any]) -> None:
    for name, cluster, message in [
        ("pack", {"placement_strategy": "STRICT_PACK"}, "the roomiest holds 1; use PACK, or lower cluster.workers"),
        ("gpu", {"accelerator": "gpu"}, "2 workers need a GPU each, the cluster has 0; lower it"),
        ("label", {"labels": {"pool": "p7"}}, "no node is 'p7': nodes have p0, p1; correct it"),
        ("one", {"labels": {"pool": "p1"}}, "need 2 CPUs, the cluster has 1; lower one of them"),
    ]:
        done, run_dir = train(nodes, recipe, name, **cluster)
        assert done.returncode == 2, done.stderr[-2000:]
        assert done.stderr.splitlines()[-1].endswith(message)
        assert not (run_dir / "mlflow_run_id").exists()


def test_a_run_waits_for_a_node_that_is_still_to_come(nodes: Nodes, recipe: dict[str, Any]) -> None:
    """It says what it waits for, and starts when a third node has joined: there, and not where labels forbid it."""
    cluster = {"labels": {"pool": "in(p1, p2)"}, "wait_seconds": 300, "placement_strategy": "STRICT_SPREAD"}
    command, run_dir = written(nodes, recipe, "waits", **cluster)
    process = subprocess.Popen(
        command, env={**nodes.environment, "RAY_ADDRESS": nodes.address}, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    while "waiting for nodes" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    assert said.splitlines()[-1] == (
        "waiting for nodes: cluster.workers: 2 workers x cluster.cpus_per_worker 1 need 2 CPUs, the cluster has 1; "
        "lower one of them"
    )
    nodes.join()
    said += process.stderr.read()
    assert process.wait(60) == 0, said[-3000:]
    assert sorted(places(run_dir)) == ["127.0.0.3", "127.0.0.4"]


def join(nodes: Nodes, before: list[str]) -> int:
    """One more node, started by a command of its own; its number."""
    number = len(nodes.processes)
    nodes.join(before=before)
    nodes.wait_for(number + 1)
    return number


def join_with_mount(nodes: Nodes, mount: str) -> int:
    """One more node, whose file systems a shell command has changed for it alone; its number."""
    before = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("may not mount")
    return join(nodes, before)


def assert_not_shared(done: subprocess.CompletedProcess[str], run_dir: Path, num_nodes: int, which: str) -> None:
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1] == (
        f"error: run.storage: '{run_dir}' is not shared by the cluster's {num_nodes} nodes: {which}; name a folder of "
        "storage that every node mounts at the same path"
    )


def test_storage_that_a_node_does_not_see_is_refused(nodes: Nodes, recipe: dict[str, Any]) -> None:
    """One more node has another file system where the run's folder should be; a run that avoids it goes on."""
    storage = Path(recipe["run"]["storage"])
    storage.mkdir(exist_ok=True)
    number = join_with_mount(nodes, f"mount -t tmpfs none {storage}")
    address = f"127.0.0.{number + 2}"
    done, run_dir = train(nodes, recipe, "local", placement_strategy="SPREAD")
    assert_not_shared(done, run_dir, number + 1, f"{address} (No such file or directory)")
    assert not list(run_dir.glob(".probe-*"))

    done, run_dir = train(nodes, recipe, "elsewhere", labels={"pool": f"!p{number}"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert address not in places(run_dir)


def test_storage_that_a_node_cannot_write_is_refused(nodes: Nodes, recipe: dict[str, Any]) -> None:
    """One more node sees the folder, but read-only."""
    storage = Path(recipe["run"]["storage"])
    storage.mkdir(exist_ok=True)
    mount = f"mount --bind {storage} {storage} && mount -o remount,ro,bind {storage}"
    number = join_with_mount(nodes, mount)
    done, run_dir = train(nodes, recipe, "read-only", labels={"pool": f"in(p0, p{number})"})
    assert_not_shared(done, run_dir, 2, f"127.0.0.{number + 2} (Read-only file system)")
    assert not (run_dir / "mlflow_run_id").exists()


def test_nodes_with_other_libraries_are_named(nodes: Nodes, recipe: dict[str, Any], tmp_path: Path) -> None:
    """One more node finds another MLflow installed; a run that would go there is refused before anything starts."""
    metadata = tmp_path / "mlflow-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: mlflow\nVersion: 1.2.3\n")
    known = nodes.environment.get("PYTHONPATH", "")
    number = join(nodes, ["env", f"PYTHONPATH={tmp_path}:{known}"])
    done, run_dir = train(nodes, recipe, "versions", labels={"pool": f"in(p0, p{number})"})
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1] == (
        f"error: cluster: nodes have other versions than this process: 127.0.0.{number + 2}: mlflow 1.2.3 (here "
        f"{version('mlflow')}); install the same environment on every node (constraints.txt)"
    )
    assert not (run_dir / "mlflow_run_id").exists()
