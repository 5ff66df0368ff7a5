"""The copy of the student that samples: the engine's logits bit for bit, nothing of DeepSpeed, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.ranks import run_on_ranks
from tests.helpers.student_engines import logits_of, row_model_like, student_of, student_recipe, take_step
from tests.helpers.tiny import save_tiny_model
from uld_ds.training.plain_copy import PlainCopy, evaluating

LORA = {"lora": {"rank": 4, "targets": "all-linear", "dropout": 0.1}}
NF4 = {"lora": LORA["lora"] | {"quantize": "nf4"}, "precision": "fp32"}


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> dict[str, str]:
    """Two matrices, or one, for embeddings and head, and widths that 4 bits need."""
    folder = tmp_path_factory.mktemp("students")
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    return {
        name: str(
            save_tiny_model(folder / name, rows, kind="bpe", vocab_size=400, seed=4, tied=name == "tied", **sizes)
        )
        for name in ("tied", "untied")
    }


def of_deepspeed(lm: torch.nn.Module) -> list[str]:
    """What DeepSpeed has hung onto a model."""
    found = [name for module in lm.modules() for name in vars(module) if name.startswith("ds_")]
    hooks = [
        hook
        for module in lm.modules()
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if "deepspeed" in hook.__code__.co_filename
    ]
    parameters = [name for name, parameter in lm.named_parameters() if hasattr(parameter, "ds_id")]
    dicts = [type(module._parameters).__name__ for module in lm.modules() if type(module._parameters) is not dict]
    return [*found, *map(repr, hooks), *parameters, *dicts]


def around_two_steps(recipe: dict[str, Any]) -> dict[str, Any]:
    """A copy is filled, read and freed between two steps."""
    student = student_of(recipe)
    take_step(student)
    copy = PlainCopy(student)
    draws = torch.get_rng_state()
    taken = copy.fill()
    found = logits_of(row_model_like(student, copy.lm)), logits_of(student)
    types = [
        {name: value.dtype for name, value in [*lm.named_parameters(), *lm.named_buffers()]}
        for lm in (copy.lm, student.module.lm)
    ]
    held = _bytes_beside(student, copy)
    wanted = sum(
        getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        for parameter in student.module.parameters()
        if parameter.requires_grad or hasattr(parameter, "ds_id")
    )
    copy.free()
    same_draws = torch.equal(draws, torch.get_rng_state())
    take_step(student)
    copy.fill()
    later = logits_of(row_model_like(student, copy.lm)), logits_of(student)
    copy.free()
    return {
        "found": found,
        "later": later,
        "hung": of_deepspeed(copy.lm),
        "types": types[0] == types[1],
        "draws": same_draws,
        "taken": taken,
        "held": held,
        "wanted": wanted,
        "left": _bytes_beside(student, copy),
    }


def _bytes_beside(student: Any, copy: PlainCopy) -> int:
    """What a copy holds that is not the engine's."""
    theirs = {id(parameter) for parameter in student.module.parameters()}
    return sum(parameter.nbytes for parameter in copy.lm.parameters() if id(parameter) not in theirs)


def plainly(recipe: dict[str, Any]) -> Tensor:
    student = student_of(recipe)
    take_step(student)
    take_step(student)
    return logits_of(student)


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fp32": ("untied", "zero3", {"precision": "fp32"}),
    "bf16, tied": ("tied", "zero3", {"precision": "bf16"}),
    "LoRA": ("untied", "zero3", {**LORA, "precision": "fp32"}),
    "LoRA in bf16": ("tied", "zero3", {**LORA, "precision": "bf16"}),
    "checkpointing, ZeRO-2": ("tied", "zero2", {"precision": "fp32", "gradient_checkpointing": True}),
    "bf16, ZeRO-2": ("untied", "zero2", {"precision": "bf16"}),
    "4 bits": ("untied", "zero2", NF4),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_copys_logits_are_the_engines(
    tiny_recipe: dict[str, Any], students: dict[str, str], case: str, ranks: int
) -> None:
    which, stage, options = CASES[case]
    recipe = student_recipe(tiny_recipe, ranks=ranks, stage=stage, model=students[which], **options)
    without = run_on_ranks(plainly, ranks, recipe)
    for found, wanted in zip(run_on_ranks(around_two_steps, ranks, recipe), without, strict=True):
        for ours, theirs in (found["found"], found["later"]):
            assert torch.equal(ours, theirs)
        assert not torch.equal(found["found"][0], found["later"][0]), "the step changed nothing"
        # Learning goes on as if there had been no copy.
        assert torch.equal(found["later"][0], wanted)
        assert found["hung"] == []
        assert found["types"] and found["draws"]
        assert found["left"] == 0
        # Under ZeRO-3 all of it is taken; else what is frozen is the engine's.
        assert found["taken"] == found["held"] == found["wanted"] > 0


def test_each_part_goes_back_to_its_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    model[1].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(part.training for part in model.modules())
        raise KeyError
    assert [part.training for part in model.modules()] == [True, True, False]
