"""Files of a checkpoint: a copy on the host, checksums, damage of every kind, a full disk, the best one kept."""

from __future__ import annotations

import errno
import json
import multiprocessing
import resource
import signal
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import state
from uld_ds.checkpointing.files import (
    any_shards_weights,
    best_name,
    is_complete,
    keep_best,
    num_ranks,
    on_host,
    problem_of,
    remove_others,
    write_shard,
)
from uld_ds.errors import FinalError
from uld_ds.workers.fatal_errors import note_if_final, noting_fatal_errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of two ranks."""
    for rank in range(2):
        write_shard(tmp_path / "checkpoint_000000007", rank, 2, state(rank))
    return tmp_path / "checkpoint_000000007"


def test_what_was_written_is_read(folder: Path) -> None:
    assert problem_of(folder, range(2)) is None
    assert is_complete(folder)
    assert num_ranks(folder) == 2
    read = torch.load(folder / "state/rank_1_model.pt", weights_only=False)
    assert torch.equal(read["weight"], torch.arange(1000.0) + 1)
    assert not [file for file in folder.rglob("*") if file.name.startswith(".")]


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_flipped_bit_is_found_and_named(folder: Path, position: int) -> None:
    file = folder / "state/rank_1_optim.pt"
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
    assert problem_of(folder, [0]) is None
    assert problem_of(folder, [0, 1]) == (
        "state/rank_1_optim.pt does not have the bytes that were written (sha256 differs)"
    )


def test_what_is_cut_off_or_missing_is_found_and_named(folder: Path) -> None:
    file = folder / "state/rank_0_model.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    assert problem_of(folder, [0]) == f"state/rank_0_model.pt has {len(whole) - 3} of {len(whole)} bytes"
    assert not is_complete(folder)
    file.unlink()
    assert problem_of(folder, [0]) == "state/rank_0_model.pt cannot be read (No such file or directory)"
    assert not is_complete(folder)
    file.write_bytes(whole)
    assert is_complete(folder)
    (folder / "manifest-00001.json").write_text("{")
    assert not is_complete(folder)
    assert (problem_of(folder, [1]) or "").startswith("manifest-00001.json cannot be read (Expecting")
    (folder / "manifest-00001.json").write_text("[]")
    assert (problem_of(folder, [1]) or "").startswith("manifest-00001.json cannot be read")
    (folder / "manifest-00001.json").unlink()
    assert not is_complete(folder)
    assert num_ranks(folder) == 2
    (folder / "manifest-00000.json").unlink()
    assert num_ranks(folder) is None


def test_a_copy_on_the_host_shares_nothing() -> None:
    flat = torch.arange(10.0)
    groups = [{"lr": 0.5, "params": [0]}]
    tree = OrderedDict(a=flat[2:5], b=[flat, ("x", groups)], c={1: {"deep": flat}})
    copied = on_host(tree)
    flat.zero_()
    groups[0]["lr"] = 0.0
    assert type(copied) is OrderedDict
    assert copied["a"].tolist() == [2.0, 3.0, 4.0]
    assert copied["b"][1][1][0]["lr"] == 0.5
    assert copied["c"][1]["deep"][9] == 9
    # Of a view, what is seen: not all that it is a view of.
    assert copied["a"].untyped_storage().nbytes() == 12


def write_with_room_for(size: int, folder: Path, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        with noting_fatal_errors(folder.parent / "stopped.txt"):
            write_shard(folder, 0, 1, state(0))
    except OSError as error:
        results.put(error.errno)


def test_no_room_leaves_nothing_and_is_said_once(tmp_path: Path) -> None:
    """The system itself refuses files beyond a size, as it does on a full disk."""
    results: multiprocessing.Queue[int] = multiprocessing.Queue()
    folder = tmp_path / "checkpoint_000000001"
    process = multiprocessing.get_context("fork").Process(target=write_with_room_for, args=(3000, folder, results))
    process.start()
    assert results.get(timeout=60) == errno.EFBIG
    process.join(60)
    assert [file for file in folder.rglob("*") if file.is_file()] == []
    text = (tmp_path / "stopped.txt").read_text()
    assert text.startswith(f"no space is left for {tmp_path} (File too large): the last checkpoint is whole; free some")
    # The first rank to say why is heard; what a restart may cure is not final.
    note_if_final(tmp_path / "stopped.txt", FinalError("later"))
    assert (tmp_path / "stopped.txt").read_text() == text
    note_if_final(tmp_path / "other.txt", OSError(errno.EIO, "a disk that hiccups"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint_000000001", "stopped.txt"]
    try:
        raise RuntimeError("outer") from OSError(errno.ENOSPC, "No space left on device")
    except RuntimeError as error:
        note_if_final(tmp_path / "other.txt", error)
    assert "No space left on device" in (tmp_path / "other.txt").read_text()


def test_what_an_attempt_left_half_written_is_removed(tmp_path: Path) -> None:
    for name in ("checkpoint_000000006", "checkpoint_000000006_1", "checkpoint_000000010", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{}")
    remove_others(tmp_path, ["checkpoint_000000010"])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best",
        "checkpoint_000000010",
        "checkpoint_manager_snapshot.json",
    ]


def test_the_best_outlives_its_folder_and_costs_no_second_copy(folder: Path) -> None:
    keep_best(folder)
    best = folder.parent / "best"
    assert best_name(folder.parent) == folder.name
    assert (best / "state/rank_0_model.pt").stat().st_ino == (folder / "state/rank_0_model.pt").stat().st_ino
    remove_others(folder.parent, [])
    assert not folder.exists()
    assert problem_of(best, range(2)) is None
    # A better one takes its place, whole.
    write_shard(folder.parent / "checkpoint_000000009", 0, 1, state(0))
    keep_best(folder.parent / "checkpoint_000000009")
    assert best_name(folder.parent) == "checkpoint_000000009"
    assert num_ranks(best) == 1
    assert json.loads((best / "manifest-00000.json").read_text())["rank"] == 0
    assert sorted(file.name for file in folder.parent.iterdir()) == ["best", "checkpoint_000000009"]


def test_whether_a_checkpoint_shards_weights(tmp_path: Path) -> None:
    names = {"whole": "state/mp_rank_00_model_states.pt", "sharded": "state/zero_pp_rank_1_mp_rank_00_model_states.pt"}
    for kind, name in names.items():
        file = tmp_path / kind / "checkpoint_000000003" / name
        file.parent.mkdir(parents=True)
        file.touch()
    assert (any_shards_weights(tmp_path / "whole"), any_shards_weights(tmp_path / "sharded")) == (False, True)
    assert not any_shards_weights(tmp_path / "no run")
