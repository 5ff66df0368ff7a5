"""The worker group that a recipe describes, run by Ray Train."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from launcher.cluster.placement import worker_resources
from uld_ds.errors import RunError, message_lines, one_line
from uld_ds.recipe import Recipe
from uld_ds.runs.folder import RunFolder

_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?::|$)")
_MOST_CHARACTERS = 600


def run_worker_group(
    worker: Callable[[dict[str, Any]], None], config: dict[str, Any], recipe: Recipe, folder: Path, *, on_gpu: bool
) -> None:
    """Run ``worker(config)`` on every rank, restarting all from the last checkpoint when one is lost.

    A worker that notes in the folder's ``stopped.txt`` why a restart is no use has no other after it.

    Args:
        worker: importable on the workers.
        config: plain values.
        recipe: its ``cluster`` and ``training`` sections are read.
        folder: of the run; Ray's own records and checkpoints go there, logs are in ``logs``.
        on_gpu: one GPU per worker.

    Raises:
        RunError: it failed for good.
    """
    cluster, stopped = recipe.cluster, RunFolder(folder).stopped
    stopped.unlink(missing_ok=True)
    # Ray Train reads this where the command runs, and hands it to whoever watches the workers.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(cluster.hang_seconds)
    trainer = TorchTrainer(
        worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=on_gpu,
            resources_per_worker=worker_resources(cluster, on_gpu=on_gpu),
            placement_strategy=cluster.placement_strategy,
            accelerator_type=cluster.accelerator_type,
            label_selector=cluster.ray_labels() or None,  # type: ignore[call-arg]  # typed as its older namesake
        ),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=recipe.training.keep_checkpoints),
        ),
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        # The ranks go with the connection: whoever closes the run's record must find nobody writing.
        ray.shutdown()
        raise
    except Exception as error:
        check_not_stopped(folder)  # without a restart left, Ray reports what the note says better
        raise RunError(f"{folder.name!r} failed: {cause(error)} (logs in {RunFolder(folder).logs})") from error


def check_not_stopped(folder: Path) -> None:
    """Check that no worker has noted why it stopped for good.

    Raises:
        RunError: one has, with what it noted.
    """
    stopped = RunFolder(folder).stopped
    if stopped.is_file():
        raise RunError(f"{folder.name!r} stopped: {stopped.read_text(encoding='utf-8')}")


def cause(error: BaseException) -> str:
    """Describe a failure of the worker group in one line."""
    # Ray's message holds the worker's traceback, whose last unindented line names the exception. Its text may have
    # more lines, with quoted input and a caret under it.
    lines = message_lines(error)
    named = [number for number, line in enumerate(lines) if _EXCEPTION.match(line)]
    return one_line("\n".join(lines[named[-1] if named else -1 :]), _MOST_CHARACTERS)
