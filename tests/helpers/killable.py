"""The train command as a process whose parts can be found, killed and stopped from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.helpers.ray_nodes import clean_environment
from uld_ds.checkpointing.manager import committed
from uld_ds.runs.folder import step_of


class Training:
    """One attempt at a run, in a session of its own."""

    def __init__(self, recipe: dict[str, Any], folder: Path, *overrides: str, before: Sequence[str] = ()) -> None:
        self.run_dir = Path(recipe["run"]["storage"]) / recipe["run"]["name"]
        file = folder / f"{recipe['run']['name']}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        sets = [word for override in overrides for word in ("--set", override)]
        self._out = (folder / "stdout").open("w+")
        self._err = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "launcher", "train", str(file), "--json", *sets],
            stdout=self._out,
            stderr=self._err,
            env=clean_environment(),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def family(self) -> list[psutil.Process]:
        """The command and all that it has started, also what was orphaned."""
        mine = psutil.Process(self.pid)
        return [mine, *mine.children(recursive=True)]

    def ranks(self) -> list[psutil.Process]:
        """The workers of the worker group."""
        return self._named("RayTrainWorker")

    def heads(self) -> list[psutil.Process]:
        """Ray's control process."""
        return self._named("gcs_server")

    def _named(self, text: str) -> list[psutil.Process]:
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def wait_until(self, condition: Callable[[], Any], seconds: float = 240.0) -> bool:
        """Whether the condition came true before the command ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            if not self.is_running():
                return False
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s: {self.errors()[-2000:]}")

    def steps(self) -> int:
        """Lines of steps in the run's progress, of all attempts."""
        file = self.run_dir / "progress.jsonl"
        return file.read_text().count('"event": "step"') if file.is_file() else 0

    def has_steps(self, number: int) -> bool:
        """Waits for so many; whether they came before the command ended."""
        return self.wait_until(lambda: self.steps() >= number)

    def committed(self, name: str) -> bool:
        """Whether Ray has taken a checkpoint."""
        file = self.run_dir / "checkpoint_manager_snapshot.json"
        return file.is_file() and name in file.read_text()

    def last_committed(self) -> int:
        """Step of the latest checkpoint that Ray has taken; 0 before the first."""
        return max((step_of(name)[0] for name in committed(self.run_dir) or []), default=0)

    def commits_after(self, step: int) -> bool:
        """Waits for a checkpoint of a later step; whether one came before the command ended."""
        return self.wait_until(lambda: self.last_committed() > step)

    def kill(self) -> None:
        """All of it, at once."""
        family = self.family() if self.is_running() else []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._gone(family)

    def kill_driver(self) -> None:
        """The command alone; Ray's processes notice and leave."""
        family = self.family()
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        self._gone(family[1:])

    def _gone(self, processes: list[psutil.Process]) -> None:
        _, left = psutil.wait_procs(processes, timeout=60)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=20)

    def finish(self, seconds: float = 300.0) -> int:
        """Waits; the exit status."""
        try:
            return self._process.wait(seconds)
        finally:
            if self.is_running():
                self.kill()

    def errors(self) -> str:
        """Standard error so far."""
        self._err.flush()
        return Path(self._err.name).read_text()

    def facts(self) -> dict[str, Any]:
        """What a finished command printed last."""
        facts: dict[str, Any] = json.loads(Path(self._out.name).read_text().splitlines()[-1])
        return facts


def losses(run_dir: Path) -> dict[int, set[float]]:
    """Of every step, the losses of all attempts at it."""
    found: dict[int, set[float]] = {}
    for text in (run_dir / "progress.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line that a kill tore
            event = json.loads(text)
            if event["event"] == "step":
                found.setdefault(event["step"], set()).add(event["train/loss"])
    return found


def same_weights(first: str | Path, second: str | Path) -> bool:
    """Whether two exported students are equal in every bit."""
    states = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (first, second)]
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])
