"""Students alone in DeepSpeed engines, and what tests of their weights ask of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.batches import SideBatch
from uld_ds.models.row_model import RowModel
from uld_ds.recipe import parse_recipe
from uld_ds.training.deepspeed_config import student_config
from uld_ds.training.engines import load_student

CPU = torch.device("cpu")
NONE = torch.empty(0, dtype=torch.long)
IDS = torch.tensor([[5, 9, 17, 30, 8, 41], [7, 7, 60, 22, 3, 11]])


def student_recipe(
    recipe: dict[str, Any], *, ranks: int, stage: str = "zero3", steps: int = 6, **student: Any
) -> dict[str, Any]:
    """A recipe whose student takes a step per micro-batch of two."""
    return recipe | {
        "training": recipe["training"] | {"batch_size": 2 * ranks, "micro_batch_size": 2, "steps": steps},
        "cluster": recipe["cluster"] | {"workers": ranks},
        "student": recipe["student"] | {"deepspeed": f"student_{stage}_cpu.json"} | student,
    }


def student_of(recipe: dict[str, Any]) -> Any:
    """The engine around the student of a recipe. Collective."""
    parsed = parse_recipe(recipe)
    assert parsed.student.model is not None
    return load_student(
        parsed.student.model,
        parsed.student,
        student_config(parsed, on_gpu=False),
        training=parsed.training,
        seed=3,
        total_steps=6,
        device=CPU,
    )


def batch_of(ids: Tensor = IDS) -> tuple[SideBatch, Tensor]:
    """Whole sequences without padding, and all their positions."""
    return SideBatch(ids, torch.ones_like(ids), NONE, NONE, NONE, NONE), torch.arange(ids.numel())


def take_step(student: Any, ids: Tensor = IDS) -> None:
    """One optimizer step on the cross entropy of some sequences. Collective."""
    student.train()
    batch, rows = batch_of(ids)
    right = ids.roll(-1, 1).flatten()
    loss = student(batch, rows, lambda hidden, head: F.cross_entropy(head.logits(hidden).float(), right))
    student.backward(loss)
    student.step()
    student.eval()


@torch.no_grad()
def logits_of(model: Any, ids: Tensor = IDS) -> Tensor:
    """Logits [B * L, V] of an engine or a RowModel."""
    return model(*batch_of(ids), lambda hidden, head: head.logits(hidden).clone())


def row_model_like(student: Any, lm: Any) -> RowModel:
    """A RowModel around another language model, that computes logits in the way that a student's does."""
    model = RowModel(lm)
    model.direct_head, model.logit_map = student.module.direct_head, student.module.logit_map
    return model
