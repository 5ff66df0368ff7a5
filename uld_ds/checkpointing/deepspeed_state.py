"""DeepSpeed's state of the student: copied to host memory, loaded, and divided anew for another number of ranks."""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import BUFFER_NAMES, FROZEN_PARAM_FRAGMENTS, FROZEN_PARAM_SHAPES
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.zero import GatheredParameters

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
        path, client = student.load_checkpoint(str(folder), tag=_TAG)
        _forget_copies(student.module)
        return path, client
    path, client = student.load_checkpoint(str(folder), tag=_TAG, custom_load_fn=load_learning)
    same = path is None or not ranks.is_first or client[_BASE] == base_digest(student.module)
    if not all(ranks.gather(same)):
        raise FinalError(
            f"{folder.name} was learned beside other 4-bit weights than those made of student.model now: its files "
            "have changed, or another kind of device rounds them otherwise. Restore the files, go on where the run "
            "was, or set another run.name"
        )
    return path, client


def _forget_copies(module: Any) -> None:
    """Forget the second copies that hpZ keeps of frozen shards: DeepSpeed 0.19 loads the first ones alone.

    They are made anew when a weight has been gathered.
    """
    for weight in module.parameters():
        if getattr(weight, "ds_secondary_tensor", None) is not None:
            weight.ds_secondary_tensor = None


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
    folders = {"input_folder": str(source), "output_folder": str(target), "inject_missing_state": True}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it talks, and draws bars
        ds_to_universal.main(argparse.Namespace(**folders, **options))


def load_divided(student: Any, folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Load the checkpoint that ``divide_anew`` has put into a folder's subfolder. Collective.

    Args:
        student: the DeepSpeed engine.
        folder: parent of the ``target`` of ``divide_anew``.

    Returns:
        What DeepSpeed's ``load_checkpoint`` returns: a path, None where nothing was loaded, and the client state.

    Raises:
        FinalError: the checkpoint is of other frozen parameters or buffers than those of this run.
    """
    groups = student.optimizer.optimizer.param_groups
    decays = [group["weight_decay"] for group in groups]
    # DeepSpeed looks at this when it loads, and writes its usual checkpoints whatever it is.
    student._config.load_universal_checkpoint = True
    try:
        path, client = student.load_checkpoint(str(folder), tag=_TAG)
        if path is not None:
            if student.zero_optimization_partition_weights():
                _load_what_does_not_learn(student.module, folder / _TAG)
            else:
                _load_whole_what_does_not_learn(student.module, folder / _TAG)
            _forget_copies(student.module)
        return path, client
    finally:
        student._config.load_universal_checkpoint = False
        # It gives every group the settings of the first one: vectors would begin to decay.
        for group, decay in zip(groups, decays, strict=True):
            group["weight_decay"] = decay
        # It gives all groups one and the same step, which each of them would count up in turn.
        for state in student.optimizer.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()


def _load_what_does_not_learn(module: Any, folder: Path) -> None:
    """Load frozen parameters and buffers of a divided checkpoint into a module under ZeRO-3. Collective.

    The universal format of DeepSpeed 0.19 holds what learns alone; the rest would stay as the engine was made with it,
    of files that may have changed since. ``divide_anew`` copies the shards that have it.

    Raises:
        FinalError: the checkpoint has others than the module.
    """
    files = sorted(folder.glob("zero_pp_rank_*_model_states.pt"), key=lambda file: int(file.name.split("_")[3]))
    # Mapped, not read: the first rank alone reads the frozen parameters, one after the other.
    shards = [torch.load(file, map_location="cpu", mmap=True, weights_only=False) for file in files]
    frozen = {name: weight for name, weight in module.named_parameters() if not weight.requires_grad}
    held = module.state_dict().keys()  # some buffers are no part of it: they follow from the configuration
    buffers = {name: tensor for name, tensor in module.named_buffers() if name in held}
    _check_alike(folder, shards[0][FROZEN_PARAM_SHAPES] or {}, {name: w.ds_shape for name, w in frozen.items()})
    _check_alike(
        folder,
        {name: shards[0]["module"][name].shape for name in shards[0][BUFFER_NAMES]},
        {name: tensor.shape for name, tensor in buffers.items()},
    )
    with torch.no_grad():
        for name, tensor in buffers.items():
            tensor.copy_(shards[0]["module"][name])
        for name, weight in frozen.items():
            with GatheredParameters([weight], modifier_rank=0):
                if Ranks.current().is_first:
                    flat = torch.cat([shard[FROZEN_PARAM_FRAGMENTS][name] for shard in shards])
                    weight.copy_(flat[: weight.numel()].view(weight.shape))  # the last shard ends in padding


def _load_whole_what_does_not_learn(module: Any, folder: Path) -> None:
    """Load frozen parameters and buffers of a divided checkpoint into a module that is whole on each rank.

    Raises:
        FinalError: the checkpoint has others than the module.
    """
    (file,) = folder.glob("mp_rank_*_model_states.pt")
    saved = torch.load(file, map_location="cpu", mmap=True, weights_only=False)["module"]
    here = module.state_dict()
    learned = {name for name, weight in module.named_parameters() if weight.requires_grad}
    fixed = {name: tensor for name, tensor in here.items() if name not in learned}
    found = {name: tensor for name, tensor in saved.items() if name not in learned}
    _check_alike(folder, *({name: tensor.shape for name, tensor in part.items()} for part in (found, fixed)))
    with torch.no_grad():
        for name, tensor in fixed.items():
            tensor.copy_(saved[name])


def _check_alike(folder: Path, saved: Mapping[str, torch.Size], here: Mapping[str, torch.Size]) -> None:
    other = sorted(name for name in saved.keys() | here.keys() if saved.get(name) != here.get(name))
    if other:
        raise FinalError(
            f"{folder}: what does not learn in this checkpoint is not what does not learn here: "
            f"{', '.join(other[:3])}; restore the student's files, or set another run.name"
        )


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
