"""DeepSpeed's state of the student: copied to host memory, loaded, and divided anew for another number of ranks."""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from uld_ds.checkpointing.files import HostState, on_host
from uld_ds.checkpointing.state import TrainState
from uld_ds.errors import FinalError
from uld_ds.models.quantization import base_digest, is_quantized, learning, load_learning
from uld_ds.utils.distributed import Ranks

_TAG = "state"
_BASE = "frozen_digest"


class _HostCopy(CheckpointEngine):
    """A checkpoint engine that copies what DeepSpeed would write to files to host memory."""

    def __init__(self, folder: str, kept: set[str] | None) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._kept = kept
        """Names of the module's parameters that are kept; None: all."""
        self.state: HostState = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        """Make nothing: copies in memory need no folder."""

    def save(self, state_dict: Any, path: str) -> None:
        if self._kept is not None and "module" in state_dict:
            module = {name: tensor for name, tensor in state_dict["module"].items() if name in self._kept}
            state_dict = state_dict | {"module": module}
        self.state[str(Path(path).relative_to(self._folder))] = on_host(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("copies are taken, not read")

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


def load_state(student: Any, folder: Path, ranks: Ranks) -> tuple[str | None, dict[str, Any]]:
    """Load a checkpoint of as many ranks as there are now into the student's engine. Collective.

    Args:
        student: the DeepSpeed engine.
        folder: the checkpoint, as ``host_state`` copied it.
        ranks: the process group.

    Returns:
        What DeepSpeed's ``load_checkpoint`` returns: a path, None where nothing was loaded, and the client state.

    Raises:
        FinalError: the weights in 4 bits that the checkpoint learned beside are others than those of this run.
    """
    if not is_quantized(student.module):
        return student.load_checkpoint(str(folder), tag=_TAG)
    path, client = student.load_checkpoint(str(folder), tag=_TAG, custom_load_fn=load_learning)
    same = path is None or not ranks.is_first or client[_BASE] == base_digest(student.module)
    if not all(ranks.gather(same)):
        raise FinalError(
            f"{folder.name} was learned beside other 4-bit weights than those made of student.model now: its files "
            "have changed, or another kind of device rounds them otherwise. Restore the files, go on where the run "
            "was, or set another run.name"
        )
    return path, client


def divide_anew(source: Path, target: Path) -> None:
    """Divide a DeepSpeed checkpoint into parameters, so that another number of ranks can load it.

    Args:
        source: folder of the shards, of any number of ranks.
        target: folder of the parameters; its parent is removed and made anew.
    """
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    folders = {"input_folder": str(source), "output_folder": str(target), "inject_missing_state": False}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it talks, and draws bars
        ds_to_universal.main(argparse.Namespace(**folders, **options))


def load_divided(student: Any, folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Load the checkpoint that ``divide_anew`` has put into a folder's subfolder. Collective.

    Args:
        student: the DeepSpeed engine.
        folder: parent of the ``target`` of ``divide_anew``.

    Returns:
        What DeepSpeed's ``load_checkpoint`` returns: a path, None where nothing was loaded, and the client state.
    """
    groups = student.optimizer.optimizer.param_groups
    decays = [group["weight_decay"] for group in groups]
    # DeepSpeed looks at this when it loads, and writes its usual checkpoints whatever it is.
    student._config.load_universal_checkpoint = True
    try:
        return student.load_checkpoint(str(folder), tag=_TAG)
    finally:
        student._config.load_universal_checkpoint = False
        # It gives every group the settings of the first one: vectors would begin to decay.
        for group, decay in zip(groups, decays, strict=True):
            group["weight_decay"] = decay
        # It gives all groups one and the same step, which each of them would count up in turn.
        for state in student.optimizer.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()


def host_state(student: Any, state: TrainState) -> HostState:
    """Copy all that this rank's shard of a checkpoint holds to host memory. Collective."""
    client: dict[str, Any] = {"uld_ds": asdict(state)}
    quantized = is_quantized(student.module)
    kept = learning(student.module) if quantized else None
    if quantized and Ranks.current().is_first:
        client[_BASE] = base_digest(student.module)
    # DeepSpeed leaves scripts beside what it writes; neither is kept.
    with tempfile.TemporaryDirectory() as folder:
        taken = _HostCopy(folder, kept)
        writer, student.checkpoint_engine = student.checkpoint_engine, taken
        try:
            student.save_checkpoint(
                folder, tag=_TAG, client_state=client, save_latest=False, exclude_frozen_parameters=quantized
            )
        finally:
            student.checkpoint_engine = writer
    return taken.state
