"""One training run of on_policy.py: through the product in this process, or through TRL in its own environment."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from on_policy_models import answers, new_model, right, train_plainly
from on_policy_setup import (
    ARMS,
    START,
    Cell,
    Gold,
    Layout,
    Size,
    gold_settings,
    read_rows,
    recipe_of,
    setup_facts,
    write_rows,
)

from uld_ds import Trainer
from uld_ds.utils.cache import build_once

HERE = Path(__file__).resolve().parent
SHOWN, EVALUATED = 8, 64


def start_process() -> None:
    """One thread, and no word but ours."""
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


# --- what all runs share ----------------------------------------------------------------------------------------


def make_rows(layout: Layout, task: str, python: Path) -> None:
    """The problems, by the library's own generator."""
    if layout.rows.is_file():
        return
    layout.shared.mkdir(parents=True, exist_ok=True)
    aside = layout.rows.with_suffix(".partial")
    script = str(HERE / "on_policy_tasks.py")
    subprocess.run([str(python), script, task, str(layout.task.drawn), str(aside)], check=True)
    aside.replace(layout.rows)


def make_teacher(folder: Path, size: Size, task: str) -> None:
    """The teacher, how often it is right, and its answers to the prompts that have none."""
    start_process()
    layout = Layout(folder, size, task)
    if layout.answered.is_file():
        return
    layout.folder.mkdir(parents=True, exist_ok=True)
    rows, settings = layout.of_teacher(), layout.task
    blank = layout.shared / "teacher-before"

    def train(aside: Path) -> None:
        new_model(blank, rows[:20_000], settings.teacher_vocab, seed=0)
        train_plainly(blank, aside, rows, round(settings.teacher_steps * size.teacher_share), 128, seed=0)
        shutil.rmtree(blank)

    begin, cpu = time.perf_counter(), time.process_time()
    build_once(layout.teacher, train)
    record = measured(layout, layout.teacher) | {"seconds": time.perf_counter() - begin}
    record |= {"cpu_seconds": time.process_time() - cpu}
    write_json(layout.folder / "teacher.json", record)
    prompts = layout.unanswered()
    said = answers(layout.teacher, prompts, settings.max_new_tokens)
    answered = [{"prompt": row["prompt"], "answer": text} for row, text in zip(prompts, said, strict=True) if text]
    write_rows(layout.evaluated, layout.held_out()[:EVALUATED])
    write_rows(layout.answered, answered)


def make_student(layout: Layout, seed: int) -> None:
    """A student that knows nothing, and the examples of its seed. Its tokenizer is trained on the prompts without
    answers, and what the teacher says to them: the same for all seeds."""
    answered = read_rows(layout.answered)

    def build(aside: Path) -> None:
        new_model(aside, answered, layout.task.student_vocab, seed)

    build_once(layout.student(seed), build)
    gold = layout.gold(seed)
    write_rows(layout.data("gold", seed), gold)
    write_rows(layout.data("labeled", seed), gold + answered)


# --- a run ------------------------------------------------------------------------------------------------------


def run_cell(folder: Path, results: Path, size: Size, cell: Cell, trl_python: Path | None) -> None:
    """Trains and measures one cell, and writes its result."""
    start_process()
    layout = Layout(folder, size, cell.task)
    if cell.arm == START:
        make_student(layout, cell.seed)
    begin, cpu = time.perf_counter(), time.process_time()
    target = layout.trained(cell.arm, cell.seed)
    if cell.arm != START and isinstance(ARMS[cell.arm], Gold):
        assert trl_python is not None
        trained = train_with_trl(layout, cell, trl_python)
    else:
        trained = train(layout, cell, target)
    record = {
        "cell": vars(cell),
        "setup": setup_facts(size, cell),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu + trained.pop("child_cpu_seconds", 0.0),
        **trained,
        **measured(layout, target),
    }
    write_json(results / f"{cell.name}.json", record)


def train(layout: Layout, cell: Cell, target: Path) -> dict[str, Any]:
    """Through the product."""
    recipe = recipe_of(layout, cell)
    shutil.rmtree(recipe.run_dir, ignore_errors=True)
    trainer = Trainer.from_recipe(recipe, callbacks=[])
    result = trainer.run()
    trainer.save(target)
    seconds = [entry["seconds/total"] for entry in trainer.history]
    shutil.rmtree(recipe.run_dir, ignore_errors=True)
    return {
        "losses": [entry["train/loss"] for entry in trainer.history[:: max(1, len(seconds) // 20)]],
        "student_tokens": sum(entry["student_tokens"] for entry in trainer.history),
        "step_seconds": sorted(seconds)[len(seconds) // 2],
        "bits_per_byte": {"before": result.state.bits_before, "after": result.bits_after},
        "last_step": trainer.history[-1],
    }


def train_with_trl(layout: Layout, cell: Cell, python: Path) -> dict[str, Any]:
    """In TRL's own environment."""
    settings = layout.folder / f"{cell.name}.settings.json"
    settings.write_text(json.dumps(gold_settings(layout, cell)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Of our packages, and of the process group that the last run of ours left: TRL would join it.
    for name in ("PYTHONPATH", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    command = [str(python), str(HERE / "on_policy_gold.py"), str(settings)]
    with (layout.folder / f"{cell.name}.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{cell.name}: {Path(log.name).read_text()[-1500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(layout: Layout, model: Path) -> dict[str, Any]:
    """Which of the held-out problems a model solves, greedily, and a few of its answers."""
    rows = layout.held_out()
    said = answers(model, rows, layout.task.max_new_tokens)
    shown = [{**row, "said": text} for row, text in zip(rows[:SHOWN], said, strict=False)]
    return {"right": [int(value) for value in right(said, rows)], "shown": shown}


def write_json(file: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    aside = file.with_suffix(".partial")
    aside.write_text(json.dumps(record))
    aside.replace(file)
