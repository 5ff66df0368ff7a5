"""Ray's list of checkpoints, torn or out of date, and Ray's own reader of what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from launcher.drivers.checkpoint_list import repair_checkpoint_list
from tests.helpers.checkpoints import state
from uld_ds.checkpointing.files import write_shard
from uld_ds.checkpointing.manager import committed

LIST = "checkpoint_manager_snapshot.json"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Whole checkpoints of steps 3 and 6, half a one of step 9."""
    for step in (3, 6, 9):
        for rank in range(2 if step < 9 else 1):
            write_shard(tmp_path / f"checkpoint_{step:09d}", rank, 2, state(rank))
    return tmp_path


@pytest.mark.parametrize("left", ["", '{"ray_version": "2.60.0", "checkpoint_res', "[]"])
def test_a_torn_list_is_made_again(run_dir: Path, left: str) -> None:
    (run_dir / LIST).write_text(left)
    assert committed(run_dir) is None
    notes: list[str] = []
    repair_checkpoint_list(run_dir, notes.append)
    assert notes == ["the list of checkpoints was torn; 2 whole ones are there"]
    assert committed(run_dir) == ["checkpoint_000000003", "checkpoint_000000006"]
    read = _CheckpointManagerState.parse_obj(json.loads((run_dir / LIST).read_text()))
    assert read.latest_checkpoint_result is not None
    assert read.latest_checkpoint_result.checkpoint_dir_name == "checkpoint_000000006"
    assert read.latest_checkpoint_result.metrics == {"step": 6}
    repair_checkpoint_list(run_dir, notes.append)
    assert len(notes) == 1


def test_what_is_gone_is_no_longer_listed(run_dir: Path) -> None:
    (run_dir / LIST).write_text("")
    repair_checkpoint_list(run_dir, lambda _: None)
    (run_dir / "checkpoint_000000006").rename(run_dir / "elsewhere")
    notes: list[str] = []
    repair_checkpoint_list(run_dir, notes.append)
    assert notes == ["1 of 2 checkpoints are gone; the others are used"]
    assert committed(run_dir) == ["checkpoint_000000003"]
    (run_dir / "checkpoint_000000003").rename(run_dir / "elsewhere too")
    repair_checkpoint_list(run_dir, notes.append)
    assert not (run_dir / LIST).exists()
    assert committed(run_dir) == []
    repair_checkpoint_list(run_dir, notes.append)
