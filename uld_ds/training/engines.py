"""Loading models into DeepSpeed engines, sharded from the first byte under ZeRO-3.

Host memory: transformers reads a checkpoint's weights on every rank's behalf on rank 0 before they are
partitioned, so rank 0 needs the whole model once, in its storage type, while loading.
"""

from __future__ import annotations

import logging
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, set_seed

from uld_ds.errors import FinalError
from uld_ds.models.adapters import shaped
from uld_ds.models.architectures import DTYPES
from uld_ds.models.packing import choose_packing
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.quantization import loading_options, settle
from uld_ds.models.row_model import RowModel, choose_head_path
from uld_ds.recipe import ModelSettings, StudentSettings, TeacherSettings, TrainingSettings
from uld_ds.training.deepspeed_config import zero_stage
from uld_ds.training.lr_schedule import learning_rate_factor
from uld_ds.training.partitioned_loading import outlined, partitioned
from uld_ds.utils.host_memory import return_free_memory

log = logging.getLogger(__name__)


def init_process_group(*, on_gpu: bool) -> None:
    """Join the process group that Ray or torchrun has set in the environment: NCCL on GPUs, gloo on CPUs."""
    if not on_gpu:
        # DeepSpeed would compile a shared-memory communication op for minutes; gloo alone gives equal results.
        import deepspeed.ops

        deepspeed.ops.__dict__["__compatible_ops__"] = dict.fromkeys(deepspeed.ops.__compatible_ops__, False)
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False, dist_init_required=False
    )


def load_teacher(place: str, settings: TeacherSettings, config: dict[str, Any], device: torch.device) -> Any:
    """Load the frozen teacher into a DeepSpeed engine, or, with ``sharding: none``, as a RowModel on the device.

    Args:
        place: directory or hub id.
        settings: the recipe's ``teacher``.
        config: complete DeepSpeed configuration, for a teacher that is sharded.
        device: device of this rank.

    Raises:
        FinalError: weights are missing, unexpected or of another shape.
    """
    sharded = settings.sharding == "zero3"
    lm = load_weights(Pretrained.at(place, settings, "teacher"), settings, config if sharded else {})
    model = RowModel(lm.eval().requires_grad_(False))
    if not sharded:
        model.to(device)
        choose_head_path(model, model, device, "teacher")
        choose_packing(model, model, device, "teacher", wanted=settings.packing)
        return model
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    choose_head_path(model, engine, device, "teacher")
    choose_packing(model, engine, device, "teacher", wanted=settings.packing)
    return engine


def load_student(
    place: str,
    settings: StudentSettings,
    config: dict[str, Any],
    *,
    training: TrainingSettings,
    seed: int,
    total_steps: int,
    device: torch.device,
) -> Any:
    """Load the student into a DeepSpeed engine with optimizer and learning-rate schedule.

    Args:
        place: directory or hub id.
        settings: the recipe's ``student``.
        config: complete DeepSpeed configuration.
        training: the recipe's ``training``, for the learning rate's schedule.
        seed: seed of the weights of new adapters.
        total_steps: optimizer steps of the whole run, for the schedule.
        device: device of this rank.

    Raises:
        FinalError: weights are missing, unexpected or of another shape.
    """
    pretrained = Pretrained.at(place, settings, "student")
    quantization: dict[str, Any] = {}
    if settings.quantize is not None:
        of_model = pretrained.config()
        quantization = loading_options(settings, of_model, DTYPES[settings.precision], device)
    lm: Any = load_weights(pretrained, settings, config, **quantization)
    if quantization:
        settle(lm)
    if settings.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    set_seed(seed)
    model = RowModel(shaped(lm, settings))
    factor = learning_rate_factor(training.schedule, total_steps)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=_parameter_groups(model),
        config=config,
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, factor),
    )
    share_fp32_weights(engine.optimizer)
    begin_at_step_zero(engine.optimizer)
    return_free_memory()
    engine.eval()
    choose_head_path(model, engine, device, "student")
    choose_packing(model, engine, device, "student", wanted=settings.packing)
    return engine


def share_fp32_weights(optimizer: Any) -> int:
    """Make an fp32 model under ZeRO-3 its own master copy, as DeepSpeed means it to be; return the bytes saved.

    DeepSpeed 0.19 compares a ``torch.device`` with a string there, finds them different, and keeps a second copy of
    every weight. What is shared is written to by the update and copied onto itself afterwards.
    """
    saved = 0
    shards = getattr(optimizer, "fp16_partitioned_groups_flat", [])
    masters = getattr(optimizer, "fp32_partitioned_groups_flat", [])
    for shard, master in zip(shards, masters, strict=True):
        # A shard that is offloaded to NVMe is None; one whose master rests elsewhere differs in its device.
        alike = shard is not None and (shard.dtype, shard.device, shard.shape) == (
            master.dtype,
            master.device,
            master.shape,
        )
        if alike and shard.data_ptr() != master.data_ptr():
            saved += master.nbytes
            master.data = shard.data
    return saved


def begin_at_step_zero(optimizer: Any) -> None:
    """Undo the step with gradients of zero that DeepSpeed 0.19 takes at once in bf16 without ZeRO.

    It means to allocate Adam's moments, but counts as their first step, which scales the next by 0.74, and decays the
    fp32 weights.
    """
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        optimizer.optimizer.state.clear()
        for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for weight, master in zip(weights, masters, strict=True):
                master.data.copy_(weight.data)


def load_weights(
    pretrained: Pretrained, settings: ModelSettings, config: dict[str, Any], **quantization: Any
) -> PreTrainedModel:
    """Load a model, partitioned from the first byte where its DeepSpeed configuration is of stage 3.

    Args:
        pretrained: where it is.
        settings: in which precision it is held.
        config: its DeepSpeed configuration; an empty one for a model that is whole on each rank.
        quantization: more options for transformers' ``from_pretrained``.

    Raises:
        FinalError: weights are missing, unexpected or of another shape.
    """
    place = pretrained.place
    # Told of all shapes at once, transformers goes on; it would raise before it has told their names.
    options: dict[str, Any] = {"dtype": DTYPES[settings.precision], "ignore_mismatched_sizes": True}
    lm: PreTrainedModel
    if zero_stage(config) == 3:
        outline, info = outlined(pretrained, **options)
        _check_complete(pretrained, info)
        with partitioned(config, outline):
            lm, info = pretrained.load(**options, output_loading_info=True)
        if info["missing_keys"]:
            # Of some architectures (DeepSeek-V4 in transformers 5.23) it does not find all that the files hold.
            names = ", ".join(sorted(info["missing_keys"])[:3])
            log.warning("%s: transformers does not find %s while partitioning: each worker loads all", place, names)
            del lm
            # DeepSpeed partitions a model that is whole, too.
            lm = pretrained.load(**options)
    else:
        lm, info = pretrained.load(**options, output_loading_info=True, **quantization)
        _check_complete(pretrained, info)
        outline = lm
    if config:
        _warn_of_rounding(place, outline, options["dtype"])
    return lm


def _other_shape(name: str, in_file: torch.Size, in_model: torch.Size) -> str:
    return f"{name} {list(in_file)} for {list(in_model)}"


def _warn_of_rounding(place: str, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Warn of weights that an architecture keeps in fp32 beside others in bf16: DeepSpeed 0.19 has one type for all."""
    kept = sorted(
        name for name, weight in model.named_parameters() if weight.is_floating_point() and weight.dtype != dtype
    )
    if kept:
        log.warning(
            "%s: DeepSpeed rounds %d weights to %s that transformers keeps in fp32 (%s): precision fp32 holds them as "
            "they are", place, len(kept), str(dtype).removeprefix("torch."), ", ".join(kept[:3])
        )  # fmt: skip


def _check_complete(pretrained: Pretrained, info: dict[str, Any]) -> None:
    """Check that a model's files hold its weights, all of them and nothing else.

    Raises:
        FinalError: they do not.
    """
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = sorted(key if isinstance(key, str) else _other_shape(*key) for key in info.get(kind, ()))
        if found:
            names = ", ".join(found[:3])
            raise FinalError(f"{pretrained.place}: {kind.replace('_', ' ')} while loading ({len(found)}): {names}")


def _parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Group the trained parameters: matrices, which decay, and biases and norm weights, which do not."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (matrices if len(shape) > 1 else vectors).append(parameter)
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
