"""A job that this process trains by itself, or as one of torchrun's ranks: no Ray, no driver."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from uld_ds.data.prepared import PREPARED_DATA
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import Recipe
from uld_ds.recipe.weight_schedule import check_schedule
from uld_ds.runs.folder import RunFolder
from uld_ds.runs.job import Job
from uld_ds.training.deepspeed_config import student_config, teacher_config
from uld_ds.training.engines import init_process_group
from uld_ds.training.preparation import (
    check_identities,
    prepared_splits,
    share_a_tokenizer,
    student_place,
    teacher_sides,
    warn_of_splits,
)
from uld_ds.utils.distributed import Ranks, device_for


def prepare_job(recipe: Recipe) -> tuple[Job, Ranks, torch.device]:
    """Join the process group, find models and prepare data: all that engines are put together from. Collective.

    Returns:
        The job, the process group, and this rank's device.

    Raises:
        UserError: something in the recipe cannot be done, or ``cluster.workers`` is not the number of processes.
    """
    on_gpu = torch.cuda.is_available() and recipe.cluster.accelerator != "cpu"
    ranks = _join(on_gpu=on_gpu)
    if recipe.cluster.workers != ranks.size:
        raise UserError(
            "cluster.workers",
            f"{recipe.cluster.workers}, but this is one of {ranks.size} process(es)",
            f"set it to {ranks.size}, start as many with torchrun, or run `uld-ds train`",
        )
    # One after the other: the first rank makes what the others then find.
    for turn in range(ranks.size):
        if turn == ranks.rank:
            job = _job(recipe, on_gpu=on_gpu)
        ranks.barrier()
    return job, ranks, device_for(int(os.environ["LOCAL_RANK"]), on_gpu=on_gpu)


def _job(recipe: Recipe, *, on_gpu: bool) -> Job:
    folder = recipe.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    place = student_place(recipe, RunFolder(folder).student)
    own = TextSide.of_model(Pretrained.at(place, recipe.student, "student"), recipe.student, "student")
    teacher, sides = teacher_sides(recipe, own)
    check_identities(recipe, sides["train"], shared=share_a_tokenizer(own, sides["train"]))
    splits = prepared_splits(recipe, own, sides, Path(recipe.run.storage) / PREPARED_DATA)
    warn_of_splits(splits)
    if recipe.training.steps is not None:
        check_schedule(recipe.objective, recipe.training.steps)
    return Job(
        recipe=recipe,
        run_dir=folder,
        teacher=teacher,
        student=place,
        tracking_uri="",
        run_id="",
        on_gpu=on_gpu,
        student_deepspeed=student_config(recipe, on_gpu=on_gpu),
        teacher_deepspeed=teacher_config(recipe, on_gpu=on_gpu),
        splits={name: str(split.folder) for name, split in splits.items()},
    )


def _join(*, on_gpu: bool) -> Ranks:
    """Join torchrun's process group, or make one of this process alone; one that is there already is kept."""
    if not torch.distributed.is_initialized():
        if "RANK" not in os.environ:
            # DeepSpeed asks the environment where it is. A store in memory needs no port.
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
            backend = "nccl" if on_gpu else "gloo"
            store: Any = torch.distributed.HashStore()  # type: ignore[attr-defined]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        else:
            torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    os.environ.setdefault("LOCAL_RANK", "0")
    init_process_group(on_gpu=on_gpu)
    return Ranks.current()
