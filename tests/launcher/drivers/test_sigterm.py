"""Told to stop, a run writes a checkpoint, leaves with 143, and goes on when it is run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from launcher.drivers.sigterm import SigtermStops
from launcher.drivers.train import run_training
from tests.helpers.ray_nodes import clean_environment
from uld_ds.errors import StoppedError
from uld_ds.recipe import parse_recipe
from uld_ds.runs.stop_file import StopFile


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def training(run_dir: Path, grace_seconds: float) -> Iterator[StopFile]:
    """As the driver is while the worker group trains."""
    file = StopFile(run_dir)
    with SigtermStops() as sigterm, sigterm.after_a_checkpoint(file, grace_seconds):
        yield file


def test_sigterm_asks_and_the_handler_before_comes_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with training(tmp_path, 60) as file:
        assert not file.is_asked()
        terminate()
        assert file.is_asked()
    assert signal.getsignal(signal.SIGTERM) is before
    file.clear()
    assert not file.is_asked()
    file.clear()


def test_the_grace_period_ends(tmp_path: Path) -> None:
    begin = time.monotonic()
    message = r"without waiting for a last checkpoint: it took longer than cluster.grace_seconds 0.3; the same command"
    with pytest.raises(StoppedError, match=message) as caught, training(tmp_path, 0.3):
        terminate()
        time.sleep(20)
    assert caught.value.exit_status == 143
    assert time.monotonic() - begin < 5


def test_a_second_signal_does_not_wait_for_it(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="told to twice"), training(tmp_path, 60):
        terminate()
        threading.Timer(0.2, terminate).start()
        time.sleep(20)


def test_the_grace_period_is_over_with_the_worker_group(tmp_path: Path) -> None:
    """What the driver does after the worker group's last checkpoint is not cut off by its timer."""
    with SigtermStops() as sigterm:
        with sigterm.after_a_checkpoint(StopFile(tmp_path), 0.2):
            terminate()
        time.sleep(0.4)


def test_before_there_is_a_worker_group_it_stops_at_once() -> None:
    with pytest.raises(StoppedError, match=r"^told to stop; the same command"), SigtermStops():
        terminate()
        time.sleep(20)


def test_ctrl_c_stays_ctrl_c(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), training(tmp_path, 60):
        raise KeyboardInterrupt


def start(recipe: dict[str, Any], storage: Path, name: str) -> tuple[list[str], subprocess.Popen[str], Path]:
    """Begins a run in a process of its own: its command, the process once it has made some steps, its progress."""
    (file := storage / f"{name}.yaml").write_text(
        yaml.safe_dump(recipe | {"run": {"name": name, "storage": str(storage)}})
    )
    command = [sys.executable, "-m", "launcher", "train", str(file), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    )
    progress = storage / name / "progress.jsonl"
    while not (progress.is_file() and '"step": 5' in progress.read_text()):
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.02)
    return command, process, progress


def check_stopped(process: subprocess.Popen[str], run_dir: Path) -> None:
    """It wrote a checkpoint of the step it was at, and its record says that it was killed."""
    told = time.monotonic()
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 143, stderr[-2000:]
    assert time.monotonic() - told < 60
    message = f"error: '{run_dir.name}' was told to stop; the same command goes on where it left off"
    assert stderr.splitlines()[-1] == message
    (checkpoint,) = run_dir.glob("checkpoint_0*")
    steps = [json.loads(line) for line in (run_dir / "progress.jsonl").read_text().splitlines()]
    last = max(event["step"] for event in steps if event["event"] == "step")
    assert 5 <= last < 200
    assert checkpoint.name == f"checkpoint_{last:09d}"
    assert not (run_dir / "result.json").exists()
    client = mlflow.MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    run_id = (run_dir / "mlflow_run_id").read_text()
    assert client.get_run(run_id).info.status == "KILLED"
    assert client.get_metric_history(run_id, "train/loss")[-1].step == last


@pytest.mark.slow
def test_sigterm_then_the_same_command_gives_the_same_student(tmp_path: Path, tiny_recipe: dict[str, Any]) -> None:
    """Stopped between two planned checkpoints; the loss after going on is that of a run never stopped."""
    tiny_recipe["training"] |= {"steps": 200, "checkpoint_every": 1000}
    tiny_recipe["evaluation"] = {"sample_tokens": 0}
    whole = run_training(parse_recipe(tiny_recipe | {"run": {"name": "whole", "storage": str(tmp_path)}}))
    command, process, progress = start(tiny_recipe, tmp_path, "stopped")
    process.send_signal(signal.SIGTERM)
    check_stopped(process, progress.parent)

    again = subprocess.run(command, capture_output=True, text=True, timeout=240, env=clean_environment(), check=True)
    facts = json.loads(again.stdout.splitlines()[-1])
    steps = [json.loads(line) for line in progress.read_text().splitlines()]
    assert [event["step"] for event in steps if event["event"] == "step"] == list(range(1, 201))
    assert facts["final_loss"] == whole["final_loss"]
    assert facts["bits_per_byte"] == whole["bits_per_byte"]
    assert not StopFile(progress.parent).is_asked()


@pytest.mark.slow
def test_a_file_stops_it_too_and_a_second_signal_ends_it_at_once(tmp_path: Path, tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["training"] |= {"steps": 200, "checkpoint_every": 1000}
    tiny_recipe["evaluation"] = {"sample_tokens": 0}
    _, process, progress = start(tiny_recipe, tmp_path, "filed")
    (progress.parent / "STOP").touch()
    check_stopped(process, progress.parent)

    _, process, progress = start(tiny_recipe, tmp_path, "twice")
    process.send_signal(signal.SIGTERM)
    while not StopFile(progress.parent).is_asked():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 143, stderr[-2000:]
    assert time.monotonic() - told < 20
    # The worker group may have committed one meanwhile: nobody waited to see.
    said = "error: stopped without waiting for a last checkpoint: told to twice; the same command goes on from the last"
    assert stderr.splitlines()[-1].startswith(said)
