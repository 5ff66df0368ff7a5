"""One rank of ours in teacher.py, step.py and scaling.py: makes a step for every line that it reads."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch

from uld_ds.data.prepare import Preparer
from uld_ds.models.teacher_precision import precision_here
from uld_ds.recipe import Recipe, load_recipe
from uld_ds.runs.job import Job
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.stored_side import StoredSide
from uld_ds.tokenization.loading import load_tokenizer
from uld_ds.training.assembly import assemble
from uld_ds.training.deepspeed_config import student_config, teacher_configs
from uld_ds.training.engines import init_process_group
from uld_ds.utils.distributed import Ranks
from uld_ds.utils.host_memory import hand_back_large_blocks


def settled(recipe: Recipe) -> Recipe:
    """The recipe with a precision for the teacher, as a run's driver would choose it."""
    wanted = recipe.teacher_named().precision
    precision = precision_here(wanted, on_gpu=False)
    return recipe.with_teachers({recipe.teacher_named().name: {"precision": precision}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--micro", type=int, required=True)
    parser.add_argument("--store")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeatable")
    options = parser.parse_args()
    workers = int(os.environ["WORLD_SIZE"])
    changes = ["teacher.cache=false", f"training.micro_batch_size={options.micro}", f"cluster.workers={workers}"]
    if options.store:
        changes += ["teacher.source=stored", f"teacher.path={options.store}"]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    recipe = settled(load_recipe(options.recipe, changes + options.set))
    device = torch.device("cpu")
    hand_back_large_blocks()
    torch.distributed.init_process_group("gloo")
    init_process_group(on_gpu=False)
    ranks = Ranks.current()
    store = SpectrumStore.open(options.store) if options.store else None
    student_place, teacher_place = str(recipe.student.model), str(recipe.teacher_named().model)
    tokenizer = load_tokenizer(student_place, None, "student")
    side = load_tokenizer(teacher_place, None, "teacher") if store is None else StoredSide(store)
    cache = options.recipe.parent / f"prepared-{os.getpid()}"
    split = Preparer(recipe, tokenizer, side).prepare(recipe.data.train, "data.train", cache)
    configs = student_config(recipe, on_gpu=False), teacher_configs(recipe, on_gpu=False)
    job = Job(
        recipe, cache, {"teacher": teacher_place}, student_place, "", "", False, *configs, {"train": str(split.folder)}
    )
    parts = assemble(job, ranks=ranks, device=device)
    engine, batches = parts.engine, parts.batches
    print("READY", flush=True)
    for step, _ in enumerate(sys.stdin):
        begin = time.perf_counter()
        result = engine.train_step(batches.window(step))
        record = {
            "seconds": time.perf_counter() - begin,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            # The result adds up all ranks; so does the reader.
            "gathered_bytes": result.teacher_bytes // ranks.size,
            "loss": result.loss,
            "tokens": result.student_tokens,
            "padding": result.student_padding,
            "phases": result.seconds,
        }
        print("STEP" + json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
