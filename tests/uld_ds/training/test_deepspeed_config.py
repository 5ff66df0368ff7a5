"""DeepSpeed's JSON: what ships is accepted, what would be ignored or overwritten is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.training.deepspeed_config import (
    ALLOWED_STAGES,
    OWNED_BY_RECIPE,
    SMALL_STUDENT,
    Role,
    read_config,
    shipped_configs,
    student_config,
    teacher_config,
    zero_stage,
)


def recipe(**student: Any) -> Recipe:
    return parse_recipe(
        {
            "run": {"name": "a"},
            "teacher": {"model": "t", "precision": "fp32"},
            "student": {"model": "s", **student},
            "data": {"train": {"source": "files", "path": "x"}},
            "training": {
                "steps": 1,
                "batch_size": 12,
                "micro_batch_size": 2,
                "gradient_clipping": 0.5,
                "optimizer": {"learning_rate": 0.25, "weight_decay": 0.125, "betas": [0.5, 0.75], "eps": 1e-6},
            },
            "cluster": {"workers": 3},
        }
    )


def refusal(tmp_path: Path, content: Any, role: Role = "student") -> str:
    file = tmp_path / "ds.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_config(str(file), role, on_gpu=False)
    start = f"{role}.deepspeed: {file}: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_is_accepted_and_is_what_its_name_says(name: str) -> None:
    role = name.split("_")[0]
    assert role in get_args(Role)
    config = read_config(name, role, on_gpu="gpu" in name)  # type: ignore[arg-type]
    assert zero_stage(config) == int(name.split("_")[1].removeprefix("zero").removesuffix(".json"))
    zero = config["zero_optimization"]
    assert zero["overlap_comm"] is ("gpu" in name)
    assert ("offload_param" in zero) is ("offload" in name)
    assert config["wall_clock_breakdown"] is False


def test_the_defaults_of_both_roles_ship() -> None:
    names = {f"{role}_zero3_{device}.json" for role in get_args(Role) for device in ("cpu", "gpu")}
    assert names <= set(shipped_configs())
    for role in get_args(Role):
        for on_gpu in (False, True):
            assert zero_stage(read_config(None, role, on_gpu=on_gpu)) == 3


@pytest.mark.parametrize("key", sorted(OWNED_BY_RECIPE))
def test_keys_that_the_recipe_owns(tmp_path: Path, key: str) -> None:
    assert refusal(tmp_path, {key: 1}) == f"{key} conflicts with the recipe; remove it; set {OWNED_BY_RECIPE[key]}"


def test_unknown_keys(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"zero_optimisation": {"stage": 3}})
    assert text.startswith("unknown key 'zero_optimisation'; remove it; known keys: activation_checkpointing, aio, ")
    assert refusal(tmp_path, {"zero_optimization": {"stge": 3}}) == (
        "zero_optimization.stge: Extra inputs are not permitted (value 3); correct it"
    )
    nested = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin": True}}}
    assert refusal(tmp_path, nested) == (
        "zero_optimization.offload_param.pin: Extra inputs are not permitted (value True); correct it"
    )


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"steps_per_print": "auto"}, "steps_per_print"),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}, "zero_optimization.reduce_bucket_size"),
        ({"aio": {"sizes": [1, "auto"]}}, "aio.sizes[1]"),
    ],
)
def test_auto_is_filled_in_by_nothing(tmp_path: Path, config: dict[str, Any], where: str) -> None:
    assert refusal(tmp_path, config) == f'{where} is "auto"; write a value; nothing fills it in here'


@pytest.mark.parametrize(("role", "stage", "stages"), [("teacher", 1, "0 or 3"), ("teacher", 2, "0 or 3")])
def test_stages_that_a_role_cannot_run_at(tmp_path: Path, role: Role, stage: int, stages: str) -> None:
    config = {"zero_optimization": {"stage": stage}}
    assert refusal(tmp_path, config, role) == f"zero_optimization.stage {stage}; a {role} runs at stage {stages}"


def test_the_norm_of_the_gradient_cannot_be_left_out(tmp_path: Path) -> None:
    for no in (False, 0):
        assert refusal(tmp_path, {"zero_optimization": {"stage": 2, "compute_grad_norm": no}}) == (
            "zero_optimization.compute_grad_norm is false; remove it: the norm is logged, and tells steps that are not "
            "finite"
        )


@pytest.mark.parametrize("role", get_args(Role))
def test_stages_that_a_role_can_run_at(tmp_path: Path, role: Role) -> None:
    file = tmp_path / "ds.json"
    for stage in ALLOWED_STAGES[role]:
        file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        assert zero_stage(read_config(str(file), role, on_gpu=False)) == stage
    file.write_text("{}")
    assert zero_stage(read_config(str(file), role, on_gpu=False)) == 0


def test_things_that_are_no_config(tmp_path: Path) -> None:
    assert refusal(tmp_path, "{").startswith("not JSON (Expecting property name")
    (tmp_path / "ds.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not JSON"):
        read_config(str(tmp_path / "ds.json"), "student", on_gpu=False)
    with pytest.raises(UserError, match=r"ds.json holds a list; a DeepSpeed configuration is an object$"):
        (tmp_path / "ds.json").write_text("[]")
        read_config(str(tmp_path / "ds.json"), "student", on_gpu=False)
    assert refusal(tmp_path, {"zero_optimization": 3}) == "zero_optimization is 3; write an object with stage in it"
    assert refusal(tmp_path, {"zero_optimization": {"stage": 4}}).startswith(
        "zero_optimization.stage: Input should be "
    )
    with pytest.raises(UserError) as caught:
        read_config("student_zero9.json", "student", on_gpu=False)
    assert str(caught.value) == (
        "student.deepspeed: no file 'student_zero9.json'; give a path or one of " + ", ".join(shipped_configs())
    )


def test_the_students_complete_configuration() -> None:
    config = student_config(recipe(), on_gpu=False)
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (12, 2)
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert config["fp16"] == {"enabled": False}
    params = {"lr": 0.25, "weight_decay": 0.125, "betas": [0.5, 0.75], "eps": 1e-6, "torch_adam": True, "fused": True}
    assert config["optimizer"] == {"type": "AdamW", "params": params}
    # Torch accepts what DeepSpeed hands on.
    del params["torch_adam"]
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], **params)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_small_student_is_whole_on_each_rank_by_default(on_gpu: bool) -> None:
    kind = "gpu" if on_gpu else "cpu"
    stages = {
        size: zero_stage(student_config(recipe(), on_gpu=on_gpu, weight_bytes=size))
        for size in (None, 0, SMALL_STUDENT, SMALL_STUDENT + 1)
    }
    assert stages == {None: 3, 0: 2, SMALL_STUDENT: 2, SMALL_STUDENT + 1: 3}
    named = recipe(deepspeed=f"student_zero3_{kind}.json")
    assert zero_stage(student_config(named, on_gpu=on_gpu, weight_bytes=1)) == 3


def test_with_budgets_of_tokens_the_batch_is_no_product() -> None:
    tree = recipe().model_dump(mode="json")
    tree["training"] |= {"batch_size": 13, "micro_batch_tokens": 4096}
    del tree["training"]["micro_batch_size"]
    found = parse_recipe(tree)
    assert (found.training.micro_batch_size, found.accumulation) == (13, 1)
    config = student_config(found, on_gpu=False)
    assert config["train_micro_batch_size_per_gpu"] == config["gradient_accumulation_steps"] == 1
    assert config["train_batch_size"] == found.cluster.workers


def test_the_optimizer_fits_the_device() -> None:
    params = student_config(recipe(), on_gpu=True)["optimizer"]["params"]
    assert (params["torch_adam"], params["fused"]) == (True, True)
    offloaded = student_config(recipe(deepspeed="student_zero3_gpu_offload.json"), on_gpu=True)
    assert "torch_adam" not in offloaded["optimizer"]["params"]
    assert "fused" not in offloaded["optimizer"]["params"]


def test_the_teachers_complete_configuration() -> None:
    config = teacher_config(recipe().teacher_named(), on_gpu=True)
    assert config["bf16"]["enabled"] is False
    assert "optimizer" not in config
    assert config["zero_optimization"]["stage3_max_reuse_distance"] == 0
