"""Whole runs whose checkpoints are damaged, or find no room: the one before is used, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.killable import Training, losses, same_weights

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    tiny_recipe["training"] |= {"steps": 12, "checkpoint_every": 2, "keep_checkpoints": 3}
    tiny_recipe["evaluation"] |= {"every": 4}
    return tiny_recipe


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(recipe: dict[str, Any], tmp_path: Path) -> None:
    whole = Training(recipe | {"run": recipe["run"] | {"name": "whole"}}, tmp_path)
    assert whole.finish() == 0, whole.errors()[-3000:]
    expected = whole.facts()
    # The latest three, and the best of those that were evaluated.
    names = sorted(folder.name for folder in whole.run_dir.glob("checkpoint_0*"))
    assert names == [f"checkpoint_{step:09d}" for step in (8, 10, 12)]
    assert expected["best_checkpoint"]["step"] in (4, 8)
    assert (Path(expected["best_checkpoint"]["folder"]) / "manifest-00001.json").is_file()

    first = Training(recipe, tmp_path)
    assert first.wait_until(lambda: first.committed("checkpoint_000000006")), first.errors()[-3000:]
    first.kill()
    latest = max(folder for folder in first.run_dir.glob("checkpoint_0*") if first.committed(folder.name))
    (shard,) = latest.glob("state/zero_pp_rank_1_*_optim_states.pt")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)

    second = Training(recipe, tmp_path)
    assert second.finish() == 0, second.errors()[-3000:]
    warnings = [line for line in second.errors().splitlines() if line.startswith("warning: ")]
    assert warnings == [
        f"warning: checkpoint {latest.name} is damaged (state/{shard.name} does not have the bytes that were written "
        "(sha256 differs)): the one before it is used"
    ]
    assert all(len(values) == 1 for values in losses(first.run_dir).values())
    assert second.facts()["final_loss"] == expected["final_loss"]
    assert second.facts()["best_checkpoint"]["step"] == expected["best_checkpoint"]["step"]
    assert same_weights(second.facts()["export_dir"], expected["export_dir"])

    # Every one is damaged: that is said, nothing starts again from the beginning, and Ray does not try three times.
    shutil.rmtree(first.run_dir / "export")
    (first.run_dir / "result.json").unlink()
    for shard in first.run_dir.glob("checkpoint_0*/state/*rank_0_*optim_states.pt"):
        shard.write_bytes(shard.read_bytes()[:-10])
    third = Training(recipe, tmp_path)
    assert third.finish() == 1
    assert re.search(
        r"error: .*no checkpoint in \S+ is whole: checkpoint_\d+\S*/state/\S+_optim_states.pt has \d+ of",
        third.errors().splitlines()[-1],
    )


def test_a_run_goes_on_with_another_number_of_workers(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["training"] |= {"steps": 40}
    first = Training(recipe, tmp_path)
    assert first.wait_until(lambda: first.committed("checkpoint_000000004")), first.errors()[-3000:]
    (first.run_dir / "STOP").touch()
    assert first.finish() == 143, first.errors()[-3000:]
    done = first.steps()
    assert done < 40
    second = Training(recipe, tmp_path, "cluster.workers=1")
    assert second.finish() == 0, second.errors()[-3000:]
    assert f"checkpoint_{done:09d} was made by 2 workers: it is divided anew among 1" in second.errors()
    assert second.facts()["steps"] == second.steps() == 40
    assert set(losses(first.run_dir)) == set(range(1, 41))
    assert not (first.run_dir / ".universal").exists()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to give a run a small file system")
def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(recipe: dict[str, Any], tmp_path: Path) -> None:
    storage = Path(recipe["run"]["storage"])
    storage.mkdir()
    small = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=64m none {storage} && exec "$@"', "sh"]
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("may not mount")
    recipe["training"]["steps"] = 4000
    training = Training(recipe, tmp_path, before=small)
    # The file system is the run's own: it is seen through the process that has it.
    training.run_dir = Path(f"/proc/{training.pid}/root{training.run_dir}")
    assert training.wait_until(lambda: training.committed("checkpoint_000000002")), training.errors()[-3000:]
    with suppress(OSError), (training.run_dir / "filler").open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    whole: list[str] = []

    def ended() -> bool:
        whole[:] = [f.name for f in training.run_dir.glob("checkpoint_0*") if (f / "manifest-00001.json").is_file()]
        return not training.is_running() or "error:" in training.errors()

    training.wait_until(ended)
    assert training.finish() == 1
    last = training.errors().splitlines()[-1]
    assert "no space is left" in last or "No space left on device" in last, training.errors()[-3000:]
    assert whole
