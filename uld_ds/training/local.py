"""A job that this process trains by itself, or as one of torchrun's ranks: no Ray, no driver."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from uld_ds.data.prepared import PREPARED_DATA
from uld_ds.data.sides import TextSide
from uld_ds.data.sources import source_files
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.quantization import check_installed
from uld_ds.models.teacher_precision import bf16_speedup, chosen_precision, undecided_precisions
from uld_ds.models.trial import try_student, with_own_head
from uld_ds.recipe import Recipe, TrainedTokenizerSettings
from uld_ds.runs.job import Job
from uld_ds.training.deepspeed_config import student_config, teacher_configs
from uld_ds.training.engines import init_process_group
from uld_ds.training.preparation import (
    check_rollouts,
    found_teachers,
    prepared_splits,
    student_place,
    warn_of_splits,
)
from uld_ds.utils.distributed import Ranks, device_for
from uld_ds.utils.files import file_digest, in_home

NEW_STUDENTS = ".students"
"""Folder, in ``run.storage``, of students that recipes describe and this process has made, by digests."""
OWN_ROUNDS = ".rollouts"
"""Folder, in ``run.storage``, of what students of this process's trainers answer, by the names of their runs."""


def prepare_job(recipe: Recipe) -> tuple[Job, Ranks, torch.device]:
    """Join the process group, find models and prepare data: all that engines are put together from. Collective.

    Returns:
        The job, the process group, and this rank's device.

    Raises:
        UserError: something in the recipe cannot be done, or ``cluster.workers`` is not the number of processes.
    """
    if recipe.rollouts is not None and recipe.rollouts.engine != "transformers":
        raise UserError(
            "rollouts.engine",
            f"{recipe.rollouts.engine!r} needs Ray's actors beside the workers",
            "set it to transformers, or run `uld-ds train`",
        )
    on_gpu = torch.cuda.is_available() and recipe.cluster.accelerator != "cpu"
    ranks = _join(on_gpu=on_gpu)
    if recipe.cluster.workers != ranks.size:
        raise UserError(
            "cluster.workers",
            f"{recipe.cluster.workers}, but this is one of {ranks.size} process(es)",
            f"set it to {ranks.size}, start as many with torchrun, or run `uld-ds train`",
        )
    recipe = _with_chosen_precision(recipe, ranks, on_gpu=on_gpu)
    job, failure = None, None
    # One after the other: the first rank makes what the others then find.
    for turn in range(ranks.size):
        if turn == ranks.rank:
            try:
                job = _job(recipe, on_gpu=on_gpu)
            except UserError as error:
                failure = error
        ranks.barrier()
    # A rank that fails alone would leave the others waiting for it.
    for found in ranks.gather(failure):
        if found is not None:
            raise found
    assert job is not None
    return job, ranks, device_for(int(os.environ["LOCAL_RANK"]), on_gpu=on_gpu)


def _with_chosen_precision(recipe: Recipe, ranks: Ranks, *, on_gpu: bool) -> Recipe:
    """Settle ``teacher.precision: auto``, alike on all ranks. Collective."""
    undecided = undecided_precisions(recipe)
    if not undecided:
        return recipe
    own = 0.0 if on_gpu else bf16_speedup()
    precision = chosen_precision("auto", on_gpu=on_gpu, speedups=ranks.gather(own))
    return recipe.with_teachers({name: {"precision": precision} for name in undecided})


def empty_rounds_folder(job: Job, ranks: Ranks) -> Path:
    """Make room for the rounds of rollouts of a trainer that has no checkpoints. Collective.

    It begins at the beginning: what a trainer of the same name has answered before, perhaps with other settings, is
    none of its student's. Nor is what a command's run of that name has, which is to resume from it.
    """
    folder = job.run_dir.parent / OWN_ROUNDS / job.run_dir.name
    if ranks.is_first:
        shutil.rmtree(folder, ignore_errors=True)
    ranks.barrier()
    return folder


def _job(recipe: Recipe, *, on_gpu: bool) -> Job:
    # Absolute: a notebook may change its working directory.
    folder = Path(os.path.abspath(in_home(recipe.run_dir)))  # noqa: PTH100 (keeps a shared mount's link names)
    folder.mkdir(parents=True, exist_ok=True)
    check_installed(recipe.student)
    place = student_place(recipe, folder.parent / NEW_STUDENTS / _student_digest(recipe))
    student = Pretrained.at(place, recipe.student, "student")
    config = with_own_head(student.config(), Path(place), student.key)
    check_rollouts(recipe, config)
    trial = try_student(config, recipe.student, place)
    own = TextSide.of_model(student, recipe.student, "student", special_tokens=recipe.data.special_tokens)
    teachers = found_teachers(recipe, own, folder)
    splits = prepared_splits(recipe, own, teachers, folder.parent / PREPARED_DATA)
    warn_of_splits(splits)
    return Job(
        recipe=recipe,
        run_dir=folder,
        teachers={name: teacher.place for name, teacher in teachers.items()},
        student=place,
        tracking_uri="",
        run_id="",
        on_gpu=on_gpu,
        student_deepspeed=student_config(
            recipe, on_gpu=on_gpu, weight_bytes=trial.weight_bytes(recipe.student.precision)
        ),
        teachers_deepspeed=teacher_configs(recipe, on_gpu=on_gpu),
        splits={name: str(split.folder) for name, split in splits.items()},
        servers={name: teacher.server for name, teacher in teachers.items() if teacher.server is not None},
    )


def _student_digest(recipe: Recipe) -> str:
    """Digest all that a new student depends on: cells of a notebook are run again with other settings."""
    content = recipe.model_dump(mode="json", include={"student": True, "data": True, "run": {"seed"}})
    if isinstance(recipe.student.tokenizer, TrainedTokenizerSettings):
        # The texts that its tokenizer is trained on.
        files = source_files(recipe.data.train, "data.train")
        content["files"] = [file_digest(file) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


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
