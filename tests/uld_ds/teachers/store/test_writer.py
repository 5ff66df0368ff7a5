"""A spectrum store's build ends in the same files, whatever happened to it."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
from torch.multiprocessing import ProcessExitedException

from tests.helpers.ranks import run_on_ranks
from tests.helpers.stores import build, contents, writer
from tests.helpers.teacher_outputs import example
from uld_ds.errors import UserError
from uld_ds.teachers.store.manifest import Measured
from uld_ds.teachers.store.reader import SpectrumStore


def test_a_resumed_build_ends_in_the_same_bytes(built: Path, tmp_path: Path) -> None:
    first = writer(tmp_path)
    assert first.finished_shards() == {}
    first.write_shard(1, map(example, range(20, 40)))
    # What a kill can leave: a file aside, and on a file system without order a name over half of a shard.
    (tmp_path / ".aside-0123456789ab-shard-00000-0000000000000000.parquet").write_bytes(b"PAR1")
    whole = next(built.glob("shard-00000-*"))
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "shard-00002-0123456789abcdef.parquet").write_bytes(b"PAR1")

    again = writer(tmp_path)
    assert list(again.finished_shards()) == [1]
    with pytest.raises(ValueError, match="2 of 3 shards missing, first 0"):
        again.finish()
    for index in (0, 2):
        again.write_shard(index, map(example, again.examples_of_shard(index)))
    again.finish()
    assert contents(tmp_path) == contents(built)


def killed_build(folder: Path, call: int) -> None:
    """A build whose process is killed when it calls ``fsync`` for the ``call``-th time."""
    calls = itertools.count(1)

    def kill(_descriptor: int) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = kill
    build(folder)


# A put is two calls of fsync, file and folder: the partial manifest's, then those of shards 0, 1, 2.
@pytest.mark.parametrize(("call", "finished"), [(4, 1), (5, 1), (9, 3)])
def test_a_killed_build_goes_on(built: Path, tmp_path: Path, call: int, finished: int) -> None:
    store = tmp_path / "store"
    with pytest.raises(ProcessExitedException) as killed:
        run_on_ranks(killed_build, 1, store, call)
    assert killed.value.exit_code == -signal.SIGKILL
    with pytest.raises(UserError, match="is half-written"):
        SpectrumStore.open(store)
    again = writer(store)
    left = again.finished_shards()
    assert sorted(left) == list(range(finished))
    build(store, [index for index in range(again.num_shards) if index not in left])
    assert contents(store) == contents(built)


def test_building_what_is_built_changes_nothing(copy: Path, built: Path) -> None:
    assert sorted(writer(copy).finished_shards()) == [0, 1, 2]
    assert writer(copy).finish() == SpectrumStore.open(built).manifest
    assert contents(copy) == contents(built)


def test_a_shard_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard 2 holds 10 examples, got 9"):
        writer(tmp_path).write_shard(2, map(example, range(40, 49)))
    assert list(contents(tmp_path)) == ["manifest.partial.json"]


def test_nothing_is_left_beside_the_store(built: Path) -> None:
    names = sorted(contents(built))
    assert names == ["manifest.json", *(shard.name for shard in SpectrumStore.open(built).manifest.shards)]


def test_what_was_measured_is_told(copy: Path) -> None:
    measured = Measured(mean_relative_error=1e-4, gradient_cosine=0.9999, tokens=64)
    writer(copy).finish(measured)
    assert SpectrumStore.open(copy).manifest.measured == measured
