"""Engines over tiny models, as tests need them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uld_ds.data.batching import Batcher
from uld_ds.data.dealing import Dealer
from uld_ds.data.prepare import Preparer
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import parse_recipe
from uld_ds.runs.job import Job
from uld_ds.training.assembly import assemble
from uld_ds.training.deepspeed_config import student_config, teacher_configs
from uld_ds.training.engine import DistillationEngine
from uld_ds.training.engines import load_teacher
from uld_ds.utils.distributed import Ranks

CPU = torch.device("cpu")


def prepared_job(recipe: dict[str, Any], folder: Path) -> Job:
    """A job of a recipe's training examples, whose teacher is asked anew each time."""
    data = {key: value for key, value in recipe["data"].items() if key != "eval"}
    parsed = parse_recipe(recipe | {"data": data, "teacher": recipe["teacher"] | {"cache": False}})
    assert parsed.student.model is not None
    configs = student_config(parsed, on_gpu=False), teacher_configs(parsed, on_gpu=False)
    job = Job(
        parsed,
        folder,
        {"teacher": str(parsed.teacher_named().model)},
        parsed.student.model,
        "",
        "",
        False,
        *configs,
        {},
    )
    sides = [
        TextSide.of_model(Pretrained.at(job.student, parsed.student, "student"), parsed.student, "student"),
        TextSide.of_model(
            Pretrained.at(job.teachers["teacher"], parsed.teacher_named(), "teacher"), parsed.teacher_named(), "teacher"
        ),
    ]
    split = Preparer(parsed, *sides).prepare(parsed.data.train, "data.train", folder)
    return replace(job, splits={"train": str(split.folder)})


def build(job: Job) -> tuple[DistillationEngine, Batcher]:
    """The engine of a job and its training examples."""
    parts = assemble(job, ranks=Ranks.current(), device=CPU)
    return parts.engine, parts.shown


def teacher_of(job: Job) -> Any:
    return load_teacher(job.teachers["teacher"], job.recipe.teacher_named(), job.teachers_deepspeed["teacher"], CPU)


def teacher_side(job: Job) -> TeacherBatcher:
    return TeacherBatcher(
        job.split("train").rows, padding=0, max_tokens=job.recipe.teacher_named().max_tokens_per_forward
    )


def window_of(job: Job, batcher: Batcher, indices: np.ndarray, ranks: Ranks) -> Any:
    return batcher.window(Dealer(job.recipe.training, ranks)(batcher, indices))


def variant(
    recipe: dict[str, Any],
    *,
    workers: int,
    micro: int,
    normalize: str,
    stage: str,
    tokens: int | None = None,
    packing: bool = True,
) -> dict[str, Any]:
    return recipe | {
        "training": recipe["training"] | {"micro_batch_size": micro, "micro_batch_tokens": tokens},
        "cluster": recipe["cluster"] | {"workers": workers},
        "teacher": recipe["teacher"] | {"packing": packing},
        "student": recipe["student"] | {"deepspeed": f"student_{stage}_cpu.json", "packing": packing},
        # (The driver refuses classical for two tokenizers; here any numbers do.)
        "objective": {
            "normalize": normalize,
            "uld": 1.5,
            "likelihood": 0.5,
            "classical": 0.7,
            "hybrid": 0.4,
            "projection": 0.9,
            "completion": 0.6,
            "top_ids": 16,
        },
    }
