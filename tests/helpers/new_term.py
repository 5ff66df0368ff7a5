"""What a copy of the code with one more term of the loss says of it; run as a program, from the copy.

    python -m tests.helpers.new_term RECIPE.json

Beside the recipe it writes said.json: every place in which a term must be found.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

import uld_ds
from launcher.recipe_reference import recipe_reference
from tests.helpers.engines import build, prepared_job, window_of
from uld_ds.checkpointing.state import TrainState
from uld_ds.reporting.comparison import ComparedRun
from uld_ds.reporting.model_card import model_card
from uld_ds.reporting.run_html import report_page
from uld_ds.runs.job import Job
from uld_ds.runs.progress import ProgressWriter
from uld_ds.training.engines import init_process_group
from uld_ds.workers.finish import _facts


def one_step(job: Job) -> dict[str, float]:
    """Metrics of the first optimizer step."""
    engine, batcher = build(job)
    return engine.train_step(window_of(job, batcher, np.arange(8), engine.ranks)).metrics()


def what_is_said(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Everything in which a term must be found, of a run of one step."""
    job = prepared_job(recipe, folder / "data")
    metrics = one_step(job)
    facts = {
        "teacher": job.teachers["teacher"],
        **_facts(job, TrainState(), None, AutoTokenizer.from_pretrained(job.student)),
    }
    run = folder / "run"
    (run / "report").mkdir(parents=True)
    (run / "recipe.yaml").write_text(job.recipe.to_yaml())
    (run / "report" / "lineage.json").write_text(json.dumps(facts))
    writer = ProgressWriter(run / "progress.jsonl")
    writer.start(0, 2, workers=1)
    for step in (1, 2):
        writer.step(step, 2, metrics | {"seconds/total": 1.0})
    return {
        "code": str(Path(uld_ds.__file__).parents[1]),
        "reference": recipe_reference(),
        "metrics": metrics,
        "facts": facts,
        "report": report_page(run),
        "comparison": ComparedRun.of(run).objective,
        "card": model_card(job.recipe, facts, {}),
    }


def main(file: str) -> None:
    """Writes what is said of one step, alone in a process group."""
    place = Path(file)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{place.parent}/group", rank=0, world_size=1)
    init_process_group(on_gpu=False)
    said = what_is_said(json.loads(place.read_text()), place.parent)
    place.with_name("said.json").write_text(json.dumps(said))
    # As tests.helpers.ranks says: threads of the communication library may abort a process that tears itself down.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
