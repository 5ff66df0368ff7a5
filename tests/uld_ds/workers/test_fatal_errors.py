"""Failures that are final, and those that a restart of the workers may cure."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from requests.exceptions import JSONDecodeError as HttpJSONDecodeError

from uld_ds.errors import FinalError, RunError, UserError
from uld_ds.workers.fatal_errors import noting_fatal_errors


def noted(folder: Path, error: BaseException) -> str | None:
    file = folder / "stopped.txt"
    file.unlink(missing_ok=True)
    with pytest.raises(type(error)), noting_fatal_errors(file):
        raise error
    return file.read_text() if file.is_file() else None


@pytest.mark.parametrize(
    "error",
    [
        IndexError("index out of range in self"),
        KeyError("model.layers.0.mlp.experts.weight"),
        ValueError("no such\nthing"),
        TypeError("forward() got an unexpected argument"),
        ImportError("No module named 'optimum'"),
        AttributeError("last_hidden_state"),
        NotImplementedError("a kernel"),
        AssertionError("shapes"),
    ],
)
def test_what_would_be_raised_again_is_final(tmp_path: Path, error: Exception) -> None:
    text = noted(tmp_path, error)
    assert text is not None and "\n" not in text
    assert text.startswith(f"{type(error).__name__}: {' '.join(str(error).split())}, in test_fatal_errors.py, line ")
    assert text.endswith(": it would be the same after a restart (the whole of it is in logs)")


def test_what_says_itself_what_to_do_is_noted_as_it_is(tmp_path: Path) -> None:
    assert noted(tmp_path, UserError("teacher.model", "is missing", "name it")) == "teacher.model: is missing; name it"
    assert noted(tmp_path, FinalError("no whole checkpoint")) == "no whole checkpoint"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert str(noted(tmp_path, full)).startswith(f"no space is left for {tmp_path} (No space left on device)")


def lost_worker() -> Any:
    return torch.distributed.DistNetworkError("Connection closed by peer")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4021"),
        lost_worker(),
        torch.OutOfMemoryError("CUDA out of memory"),
        ConnectionResetError("reset"),
        OSError(errno.EIO, "a disk that hiccups"),
        TimeoutError("no answer"),
        MemoryError(),
        json.JSONDecodeError("half a file", "{", 1),
        HttpJSONDecodeError("half an answer", "{", 1),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "half a character"),
        ray.exceptions.RayTaskError("f", "traceback", ValueError("there")).as_instanceof_cause(),
        RunError("MLflow does not answer"),
        EOFError("half a pickle"),
    ],
)
def test_what_a_restart_may_cure_is_not(tmp_path: Path, error: Exception) -> None:
    assert noted(tmp_path, error) is None
    assert not list(tmp_path.iterdir())


def concluded_from(reason: Exception) -> UserError:
    """What the loading of a tokenizer raises, where transformers raised something of its own in between."""
    try:
        try:
            raise reason
        except Exception as error:
            raise OSError("Can't load the tokenizer of 'org/name'") from error
    except OSError as error:
        mistake = UserError("teacher.model", "no tokenizer at 'org/name'", "name a folder or hub id that has one")
        mistake.__cause__ = error
        return mistake


def test_a_mistake_that_a_silent_hub_or_storage_was_taken_for_is_tried_again(tmp_path: Path) -> None:
    assert noted(tmp_path, concluded_from(ConnectionError("no route"))) is None
    assert noted(tmp_path, concluded_from(TimeoutError())) is None
    assert noted(tmp_path, concluded_from(OSError(errno.EIO, "a disk that hiccups"))) is None
    for lasting in (FileNotFoundError(errno.ENOENT, "no such file"), OfflineModeIsEnabled("offline"), ValueError("{")):
        assert noted(tmp_path, concluded_from(lasting)) == (
            "teacher.model: no tokenizer at 'org/name'; name a folder or hub id that has one"
        )
