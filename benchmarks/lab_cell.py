"""One training run of lab.py: through the product in this process, or through TRL in its own environment."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from cells import write_json
from lab_arms import ARMS, START, Gold
from lab_measure import Curve, Held, right_answers
from lab_models import answers, new_model, train_plainly
from lab_setup import (
    TEACHER_BATCH,
    Cell,
    Layout,
    gold_settings,
    read_rows,
    recipe_of,
    setup_facts,
    swapped,
    write_rows,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from uld_ds import Trainer
from uld_ds.checkpointing.state import TrainState
from uld_ds.training.callbacks import TrainerCallback
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


def make_rows(layout: Layout, python: Path) -> None:
    """The problems, by the library's own generator."""
    if layout.rows.is_file():
        return
    layout.rows.parent.mkdir(parents=True, exist_ok=True)
    aside = layout.rows.with_suffix(".partial")
    script, setting = str(HERE / "lab_tasks.py"), layout.setting
    subprocess.run([str(python), script, setting.problems, str(setting.drawn), str(aside)], check=True)
    aside.replace(layout.rows)


def make_teacher(layout: Layout) -> None:
    """The teacher, how often it is right, and its answers to the prompts that have none."""
    start_process()
    if layout.answered.is_file():
        return
    layout.folder.mkdir(parents=True, exist_ok=True)
    rows, setting = layout.taught(), layout.setting

    def train(aside: Path) -> None:
        blank = layout.of_teacher / "before"
        new_model(blank, rows[:20_000], setting.teacher_vocab, seed=0)
        begin, cpu = time.perf_counter(), time.process_time()
        train_plainly(blank, aside, rows, setting.teacher_steps, TEACHER_BATCH, seed=0)
        record = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
        write_json(aside / "training.json", record)
        shutil.rmtree(blank)

    build_once(layout.teacher, train)
    trained = json.loads((layout.teacher / "training.json").read_text())
    write_json(layout.folder / "teacher.json", trained | measured(layout, layout.teacher))
    prompts = layout.unanswered()
    said = answers(layout.teacher, prompts, setting.max_new_tokens)
    answered = [{"prompt": row["prompt"], "answer": text} for row, text in zip(prompts, said, strict=True) if text]
    write_rows(layout.evaluated, swapped(layout.held_out()[:EVALUATED], 0.0))
    write_rows(layout.answered, answered)


def make_student(layout: Layout, seed: int) -> None:
    """A student that knows nothing, and the examples of its seed. Its tokenizer is trained on the prompts without
    answers, and what the teacher says to them: the same for all seeds."""
    answered = read_rows(layout.answered)

    def build(aside: Path) -> None:
        new_model(aside, answered, layout.setting.student_vocab, seed)

    build_once(layout.student(seed), build)
    gold = layout.gold(seed)
    write_rows(layout.data("gold", seed), gold)
    write_rows(layout.data("labeled", seed), gold + answered)


# --- a run ------------------------------------------------------------------------------------------------------


def run_cell(results: Path, layout: Layout, cell: Cell, trl_python: Path | None) -> None:
    """Trains and measures one cell, and writes its result."""
    start_process()
    if cell.arm == START:
        make_student(layout, cell.seed)
    begin, cpu = time.perf_counter(), time.process_time()
    target = layout.start(cell.seed) if cell.arm == START else layout.trained(cell)
    if cell.arm != START and isinstance(ARMS[cell.arm], Gold):
        assert trl_python is not None
        trained = train_with_trl(layout, cell, trl_python)
    else:
        trained = train(layout, cell, target)
    record = {
        "cell": vars(cell),
        "setup": setup_facts(layout.setting, cell),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu + trained.pop("child_cpu_seconds", 0.0),
        **trained,
        **measured(layout, target),
    }
    write_json(results / f"{cell.name}.json", record)
    if cell.arm != START:
        shutil.rmtree(target)


class Measured(TrainerCallback):
    """Measures the student of a trainer at the points of a curve."""

    def __init__(self, held: Held, steps: int, points: int) -> None:
        self.trainer: Trainer | None = None
        self.tokens = 0.0
        self.curve = Curve(held, self._model, steps, points)

    def on_start(self, *_arguments: Any, **_options: Any) -> None:
        self.curve.take(0, 0.0)

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Counts the student's tokens."""
        self.tokens += metrics["student_tokens"]
        self.curve.take(state.step, self.tokens)

    def _model(self) -> Any:
        assert self.trainer is not None
        return self.trainer.engine.student.module.lm


def train(layout: Layout, cell: Cell, target: Path) -> dict[str, Any]:
    """Through the product."""
    recipe, setting = recipe_of(layout, cell), layout.setting
    shutil.rmtree(recipe.run_dir, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(layout.student(cell.seed))
    seen = Measured(Held(tokenizer, layout.held_out()), cell.steps(setting), setting.points)
    seen.trainer = trainer = Trainer.from_recipe(recipe, callbacks=[seen])
    trainer.run()
    trainer.save(target)
    seconds = [entry["seconds/total"] for entry in trainer.history]
    shutil.rmtree(recipe.run_dir, ignore_errors=True)
    return {
        "losses": [entry["train/loss"] for entry in trainer.history[:: max(1, len(seconds) // 20)]],
        "student_tokens": seen.tokens,
        "step_seconds": sorted(seconds)[len(seconds) // 2],
        "curve": seen.curve.found,
        "rounds": [{name: entry.get(name) for name in ("round", "ended", "distinct")} for entry in trainer.rounds],
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
    command = [str(python), str(HERE / "lab_gold.py"), str(settings)]
    with (layout.folder / f"{cell.name}.log").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{cell.name}: {Path(log.name).read_text()[-1500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(layout: Layout, model: Path) -> dict[str, Any]:
    """Which held-out problems a model solves, greedily, a few of its answers, and bits per byte of right ones."""
    rows = layout.held_out()
    said = answers(model, rows, layout.setting.max_new_tokens)
    shown = [{**row, "said": text} for row, text in zip(rows[:SHOWN], said, strict=False)]
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = Held(AutoTokenizer.from_pretrained(model), rows).measure(lm)
    right = [int(text in right_answers(row)) for text, row in zip(said, rows, strict=True)]
    return {"right": right, "shown": shown, "bits": found["bits"], "spelled": found["solved"]}
