"""DeepSpeed configurations: one JSON per role, completed from the recipe, checked before DeepSpeed sees it.

DeepSpeed ignores unknown top-level keys and drops ``"auto"`` silently outside the HF Trainer; several of its
defaults changed in 0.19. So unknown keys, ``"auto"`` and keys that the recipe owns are errors here, and every
default that matters is written out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, Literal

from uld_ds.errors import UserError
from uld_ds.recipe import NamedTeacherSettings, Recipe, StudentSettings, TeacherDType
from uld_ds.utils.files import in_home

Role = Literal["student", "teacher"]

SMALL_STUDENT = 1 << 30
"""Bytes of a student's weights up to which each rank holds all of them, where its recipe names no configuration.

ZeRO-3 gathers every layer for every forward and backward, which takes longer than computing it where layers are small:
a step of the demo, 3 million parameters on two ranks, takes 1.4 times the processor time of one under ZeRO-2.
"""

# Keys of the JSON that come from the recipe instead, and where they come from.
OWNED_BY_RECIPE = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.batch_size / (training.micro_batch_size x cluster.workers)",
    "gradient_clipping": "training.gradient_clipping",
    "optimizer": "training.optimizer",
    "scheduler": "training.schedule",
    "bf16": "student.precision / teacher.precision",
    "fp16": "student.precision / teacher.precision",
}
ALLOWED = {
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "communication_data_type",
    "compile",
    "flops_profiler",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
}
ALLOWED_STAGES: dict[Role, tuple[int, ...]] = {"student": (0, 1, 2, 3), "teacher": (0, 3)}


def shipped_configs() -> list[str]:
    """List the file names of the DeepSpeed configurations in ds_configs/."""
    return sorted(item.name for item in resources.files("ds_configs").iterdir() if item.name.endswith(".json"))


def read_config(name: str | None, role: Role, *, on_gpu: bool) -> dict[str, Any]:
    """Read and check the DeepSpeed JSON of one role.

    Args:
        name: a path, or a name out of ds_configs/; by default ``{role}_zero3_{cpu,gpu}.json``.
        role: whose configuration it is.
        on_gpu: whether the default is the one for GPUs.

    Raises:
        UserError: no such file, not JSON, ``"auto"``, an unknown key, or a key that the recipe owns.
    """
    key = f"{role}.deepspeed"
    name = name or f"{role}_zero3_{'gpu' if on_gpu else 'cpu'}.json"
    path = in_home(name)
    shipped = resources.files("ds_configs") / path.name
    if not path.is_file() and not (path.name == name and shipped.is_file()):
        raise UserError(key, f"no file {name!r}", f"give a path or one of {', '.join(shipped_configs())}")
    try:
        config = json.loads((path if path.is_file() else shipped).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(key, f"{name}: not JSON ({error})", "repair the file") from error
    _check(config, name, role)
    return config


def _check(config: Any, name: str, role: Role) -> None:
    key = f"{role}.deepspeed"
    if not isinstance(config, dict):
        raise UserError(key, f"{name} holds a {type(config).__name__}", "a DeepSpeed configuration is an object")
    for path, value in _leaves(config):
        if value == "auto":
            raise UserError(key, f'{name}: {path} is "auto"', "write a value; nothing fills it in here")
    for top in config:
        if top in OWNED_BY_RECIPE:
            raise UserError(key, f"{name}: {top} conflicts with the recipe", f"remove it; set {OWNED_BY_RECIPE[top]}")
        if top not in ALLOWED:
            raise UserError(key, f"{name}: unknown key {top!r}", f"remove it; known keys: {', '.join(sorted(ALLOWED))}")
    _check_zero(config.get("zero_optimization", {}), name, role)


def _check_zero(zero: Any, name: str, role: Role) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    key = f"{role}.deepspeed"
    if not isinstance(zero, dict):
        raise UserError(key, f"{name}: zero_optimization is {zero!r}", "write an object with stage in it")
    try:
        parsed = DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["zero_optimization", *map(str, first["loc"])])
        raise UserError(key, f"{name}: {where}: {first['msg']} (value {first['input']!r})", "correct it") from error
    if not getattr(parsed, "compute_grad_norm", True):  # DeepSpeed 0.19.0 has no such key
        problem = f"{name}: zero_optimization.compute_grad_norm is false"
        raise UserError(key, problem, "remove it: the norm is logged, and tells steps that are not finite")
    stage = zero.get("stage", 0)
    if stage not in ALLOWED_STAGES[role]:
        stages = " or ".join(map(str, ALLOWED_STAGES[role]))
        raise UserError(key, f"{name}: zero_optimization.stage {stage!r}", f"a {role} runs at stage {stages}")


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, tree


def teacher_configs(recipe: Recipe, *, on_gpu: bool) -> dict[str, dict[str, Any]]:
    """Complete the DeepSpeed configuration of each frozen teacher of a recipe, by its name.

    Raises:
        UserError: as ``read_config``.
    """
    return {teacher.name: teacher_config(teacher, on_gpu=on_gpu) for teacher in recipe.teachers}


def teacher_config(settings: NamedTeacherSettings, *, on_gpu: bool) -> dict[str, Any]:
    """Complete the DeepSpeed configuration of a frozen teacher from its settings.

    Raises:
        UserError: as ``read_config``.
    """
    config = read_config(settings.deepspeed, "teacher", on_gpu=on_gpu)
    return {
        **config,
        **_precision(settings.precision),
        # DeepSpeed wants batch sizes even of a model that is never trained.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
    }


def default_student_config(settings: StudentSettings, *, on_gpu: bool, weight_bytes: int | None = None) -> str:
    """Name the configuration of a student whose recipe names none.

    It is ZeRO-2, which shards optimizer states and gradients, for weights in 4 bits and for those of at most
    ``SMALL_STUDENT`` bytes; else ZeRO-3, which shards the weights, too.

    Args:
        settings: the recipe's ``student``.
        on_gpu: whether it is trained on GPUs.
        weight_bytes: bytes of its weights; None where nobody knows.
    """
    is_small = weight_bytes is not None and weight_bytes <= SMALL_STUDENT
    stage = 2 if settings.quantize is not None or is_small else 3
    return f"student_zero{stage}_{'gpu' if on_gpu else 'cpu'}.json"


def read_student_config(settings: StudentSettings, *, on_gpu: bool, weight_bytes: int | None = None) -> dict[str, Any]:
    """Read and check the student's DeepSpeed JSON, by default that of ``default_student_config``.

    Raises:
        UserError: as ``read_config``, or it would shard weights that are held in 4 bits.
    """
    name = settings.deepspeed
    fitting = default_student_config(settings, on_gpu=on_gpu, weight_bytes=weight_bytes)
    config = read_config(name or fitting, "student", on_gpu=on_gpu)
    if settings.quantize is not None and zero_stage(config) == 3:
        raise UserError(
            "student.deepspeed",
            f"{name!r} shards weights (ZeRO stage 3), but those of student.lora.quantize {settings.quantize!r} have "
            "scales outside of the parameters",
            f"leave it out, or name {fitting} (stage 2)",
        )
    return config


def student_config(recipe: Recipe, *, on_gpu: bool, weight_bytes: int | None = None) -> dict[str, Any]:
    """Complete the DeepSpeed configuration of the student: batch, precision and optimizer from the recipe.

    Args:
        recipe: of the run.
        on_gpu: whether it is trained on GPUs.
        weight_bytes: bytes of the student's weights, which its default depends on; None where nobody knows.

    Raises:
        UserError: as ``read_student_config``.
    """
    config = read_student_config(recipe.student, on_gpu=on_gpu, weight_bytes=weight_bytes)
    training = recipe.training
    # DeepSpeed wants a product. With micro-batches by tokens there is none: the engine says itself where a step ends.
    size = training.micro_batch_size if training.micro_batch_tokens is None else 1
    return {
        **config,
        **_precision(recipe.student.precision),
        "train_batch_size": size * recipe.accumulation * recipe.cluster.workers,
        "train_micro_batch_size_per_gpu": size,
        "gradient_accumulation_steps": recipe.accumulation,
        "gradient_clipping": recipe.training.gradient_clipping,
        "optimizer": {"type": "AdamW", "params": _optimizer_params(recipe, config)},
    }


def _optimizer_params(recipe: Recipe, config: dict[str, Any]) -> dict[str, Any]:
    optimizer = recipe.training.optimizer
    params: dict[str, Any] = {
        "lr": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
    }
    if _offloads_optimizer(config):
        # DeepSpeed's own CPU Adam (compiled on first use) is several times faster on the host than torch's.
        return params
    # Torch's AdamW needs no compiler; its fused kernel is as fast as DeepSpeed's and keeps no temporaries, which on a
    # CPU took three times the parameters' size.
    return {**params, "torch_adam": True, "fused": True}


def _offloads_optimizer(config: dict[str, Any]) -> bool:
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"


def zero_stage(config: Mapping[str, Any]) -> int:
    """Read the ZeRO stage of a DeepSpeed configuration, 0 to 3; at 3, parameters are sharded."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def _precision(precision: TeacherDType) -> dict[str, Any]:
    # check_grad_overflow: a non-finite gradient must skip the step on every rank alike, not poison the weights.
    return {"bf16": {"enabled": precision == "bf16", "check_grad_overflow": True}, "fp16": {"enabled": False}}
