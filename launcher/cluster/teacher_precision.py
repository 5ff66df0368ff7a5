"""The choice of a precision for teachers whose recipes say ``precision: auto``, once it is known where they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ray

from launcher.cluster.connect import hosts_of_workers
from launcher.cluster.nodes import ask_nodes
from uld_ds.models.teacher_precision import bf16_speedup, chosen_precision, undecided_precisions
from uld_ds.recipe import Recipe
from uld_ds.runs.folder import RunFolder
from uld_ds.utils.files import write_whole


def with_chosen_precision(recipe: Recipe, folder: Path, note: Callable[[str], None], *, on_gpu: bool) -> Recipe:
    """Return the recipe with bf16 or fp32 in the place of each teacher's ``precision: auto``.

    What was chosen is kept in the folder: a command that resumes goes on with it, also on other machines.

    Args:
        recipe: the recipe.
        folder: of the run, or of the command.
        note: told what was chosen, and why.
        on_gpu: whether workers get a GPU each.
    """
    undecided = undecided_precisions(recipe)
    if not undecided:
        return recipe
    file = RunFolder(folder).teacher_precision
    chosen = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if missing := [name for name in undecided if name not in chosen]:
        speedups = {} if on_gpu else _speedups(recipe, on_gpu=on_gpu)
        precision = chosen_precision("auto", on_gpu=on_gpu, speedups=speedups.values())
        chosen |= dict.fromkeys(missing, precision)
        write_whole(file, json.dumps(chosen), sync=True)
        if not on_gpu:
            note(f"teacher.precision auto is {precision}: bf16 is {min(speedups.values()):.1f} times as fast as fp32")
    return recipe.with_teachers({name: {"precision": chosen[name]} for name in undecided})


def _speedups(recipe: Recipe, *, on_gpu: bool) -> dict[str, float]:
    """Measure on every node that may get a worker."""
    hosts = hosts_of_workers(recipe.cluster, {}, on_gpu=on_gpu)
    if list(hosts) == [ray.get_runtime_context().get_node_id()]:
        return {next(iter(hosts.values())): bf16_speedup()}
    return ask_nodes(bf16_speedup, hosts)
