"""Data prepared by the two sides of a recipe, whatever their models are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from uld_ds.data.prepare import Preparer
from uld_ds.data.sides import TextSide
from uld_ds.recipe import parse_recipe
from uld_ds.runs.job import Job
from uld_ds.training.deepspeed_config import student_config, teacher_config


def prepared(recipe: dict[str, Any], folder: Path) -> Job:
    parsed = parse_recipe(recipe)
    assert parsed.student.model is not None
    configs = student_config(parsed, on_gpu=False), teacher_config(parsed, on_gpu=False)
    job = Job(parsed, folder, parsed.teacher.model, parsed.student.model, "", "", False, *configs, {})
    sides = [
        TextSide.of_model(job.student, parsed.student, "student", "student.model"),
        TextSide.of_model(job.teacher, parsed.teacher, "teacher", "teacher.model"),
    ]
    split = Preparer(parsed, *sides).prepare(parsed.data.train, "data.train", folder)
    return replace(job, splits={"train": str(split.folder)})
