"""Before a machine goes: its run is asked to stop, and waited for, but no other run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import drain as module
from launcher.drain import drain

# Stand in for a driver and a rank; tests/k8s/test_entrypoint.py drains a real run.
DRIVER = """
import pathlib, sys, time
assert sys.argv[1] == "train"
print("ready", flush=True)
while not pathlib.Path(STOP).exists(): time.sleep(0.05)
time.sleep(SECONDS)
"""
RANK = """
import sys, time
log = open(sys.argv[1], "a")
print("ready", flush=True)
time.sleep(1)
"""


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """Of a run whose folder exists, in a file."""
    (Path(tiny_recipe["run"]["storage"]) / "tiny" / "logs").mkdir(parents=True)
    tiny_recipe["cluster"]["grace_seconds"] = 30
    (file := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe))
    return file


@contextmanager
def running(folder: Path, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    (script := folder / f"script_{len(code)}.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(script), *arguments], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def driver(stop: Path, seconds: float) -> str:
    return DRIVER.replace("STOP", repr(str(stop))).replace("SECONDS", repr(seconds))


def test_the_driver_is_asked_and_waited_for(recipe: Path, tmp_path: Path) -> None:
    stop = tmp_path / "runs" / "tiny" / "STOP"
    with running(tmp_path, driver(stop, 1.0), "train", "recipe.yaml") as process:
        begin = time.monotonic()
        assert drain(recipe, 0.05)
        assert process.wait(0.5) == 0
        assert 0.9 < time.monotonic() - begin < 10
    assert stop.exists()


def test_another_run_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    stop = tmp_path / "runs" / "tiny" / "STOP"
    (other := tmp_path / "other").mkdir()
    (other / "recipe.yaml").write_text(recipe.read_text())
    with running(other, driver(stop, 1.0), "train", "recipe.yaml") as process:
        assert drain(recipe, 0.05)
        assert process.poll() is None
    assert not stop.exists()


def test_a_rank_without_the_driver_is_waited_for(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    with running(tmp_path, RANK, str(folder / "logs" / "rank-0.log")) as process:
        assert drain(recipe, 0.05)
        assert process.wait(0.5) == 0
    assert not (folder / "STOP").exists()


def test_it_ends_with_the_grace_period(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS_TO_LEAVE", 0.3)
    monkeypatch.setenv("ULD_DS__CLUSTER__GRACE_SECONDS", "0.2")
    stop = tmp_path / "runs" / "tiny" / "STOP"
    with running(tmp_path, driver(stop, 60.0), "train", "recipe.yaml"):
        begin = time.monotonic()
        assert not drain(recipe, 0.05)
        assert time.monotonic() - begin < 10


def test_command(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher.drain"]
    assert subprocess.run([*command, str(recipe)], capture_output=True, timeout=60).returncode == 0
    missing = subprocess.run([*command, "missing.yaml"], capture_output=True, text=True, timeout=60)
    assert missing.returncode == 2
    assert missing.stderr == "error: recipe: no file 'missing.yaml'; give the path of a recipe's YAML file\n"
