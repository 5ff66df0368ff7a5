"""Gradients of one step by several stored teachers, for served.py: prints the cosines with the first of them."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad

from uld_ds.recipe import load_recipe
from uld_ds.training.assembly import assemble
from uld_ds.training.local import prepare_job


def gradient(file: str) -> torch.Tensor:
    """The whole gradient of a recipe's first step, in float64."""
    job, ranks, device = prepare_job(load_recipe(file, environment={}))
    parts = assemble(job, ranks=ranks, device=device)
    student: Any = parts.engine.student
    found: list[torch.Tensor] = []
    update = student.step

    def step_and_look() -> None:
        if student.is_gradient_accumulation_boundary():
            found.extend(safe_get_full_grad(parameter).double().flatten() for parameter in student.module.parameters())
        update()

    student.step = step_and_look
    parts.engine.train_step(parts.batches.window(0))
    parts.engine.close()
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+")
    torch.set_num_threads(1)
    first, *others = [gradient(file) for file in parser.parse_args().recipes]
    print(json.dumps([float(torch.cosine_similarity(first, other, dim=0)) for other in others]))


if __name__ == "__main__":
    main()
