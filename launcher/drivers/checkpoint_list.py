"""What a kill at the wrong moment leaves of Ray's own list of checkpoints, put right before Ray reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from uld_ds.checkpointing.files import is_complete
from uld_ds.runs.folder import RunFolder, step_of
from uld_ds.utils.files import write_whole


def repair_checkpoint_list(run_dir: Path, note: Callable[[str], None]) -> None:
    """Make Ray's list of checkpoints readable again, without those that are gone.

    Ray writes it in place: a head that dies in the middle leaves half of it, and refuses it later. The checkpoints
    themselves say whether they are whole.

    Args:
        run_dir: the run's folder.
        note: told what was done.
    """
    file = RunFolder(run_dir).checkpoint_list
    if not file.is_file():
        return
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        names = [entry["checkpoint_dir_name"] for entry in listed["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        whole = [folder.name for folder in RunFolder(run_dir).checkpoints() if is_complete(folder)]
        note(f"the list of checkpoints was torn; {len(whole)} whole ones are there")
        _write(file, [{"checkpoint_dir_name": name, "metrics": {"step": step_of(name)[0]}} for name in whole])
        return
    there = [entry for entry in listed["checkpoint_results"] if (run_dir / entry["checkpoint_dir_name"]).is_dir()]
    if len(there) < len(names):
        note(f"{len(names) - len(there)} of {len(names)} checkpoints are gone; the others are used")
        _write(file, there)


def _write(file: Path, entries: list[dict[str, Any]]) -> None:
    if not entries:
        file.unlink()
        return
    results = [{"version": 0, **entry} for entry in entries]
    state = {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(results),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    write_whole(file, json.dumps(state))
