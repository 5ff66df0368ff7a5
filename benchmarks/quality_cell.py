"""One training run of quality.py: the product's engine, step by step, in this process, on one thread."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from cells import write_json
from quality_setup import ARMS, Cell, Size, recipe_of, rows_of, setup_facts
from transformers import set_seed

from uld_ds.alignment.vocabulary_mapping import relations_of
from uld_ds.checkpointing.export import export_student
from uld_ds.data.batching import Batcher, padding_id
from uld_ds.data.examples import Example
from uld_ds.data.prepare import Preparer
from uld_ds.data.sampling import deal, step_examples
from uld_ds.data.sides import TextSide
from uld_ds.data.sources import training_texts
from uld_ds.evaluation.metrics import score
from uld_ds.evaluation.predictions import Prediction
from uld_ds.generation.decoding import Decoding, Model
from uld_ds.losses.normalization import nats_to_bits
from uld_ds.losses.objective import Objective
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.student import make_student
from uld_ds.recipe import Recipe
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.stored import StoredTeacher, held_out_store
from uld_ds.teachers.stored_side import StoredSide
from uld_ds.training.deepspeed_config import student_config
from uld_ds.training.engine import DistillationEngine
from uld_ds.training.engines import init_process_group, load_student
from uld_ds.training.teaching import Teachings
from uld_ds.utils.distributed import Ranks

CPU = torch.device("cpu")


def start_process() -> None:
    """A process group of one, one thread, and no word but ours."""
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        init_process_group(on_gpu=False)


def run_cell(folder: Path, results: Path, size: Size, cell: Cell) -> None:
    """Trains and measures one cell, and writes its result."""
    start_process()
    begin, cpu = time.perf_counter(), time.process_time()
    recipe = recipe_of(folder, size, cell)
    target = folder / "students" / f"{cell.student}-{cell.seed}"
    answers: list[float] = []
    parameters = 0

    def look(engine: DistillationEngine, side: TextSide) -> None:
        nonlocal parameters
        asked = rows_of(folder, size, cell.answers, "held_out")[: size.prompts[cell.answers]]
        answers.extend(f1_of_answers(engine, side, asked, size.new_tokens))
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.student.module.parameters())

    curve, skipped, documents = train_prepared(recipe, folder, target, size.points[cell.student], look)
    record = {
        "setup": setup_facts(size, cell),
        "cell": vars(cell),
        "arm": ARMS[cell.arm],
        "parameters": parameters,
        "curve": curve,
        "skipped": skipped,
        "nats": documents[0].tolist(),
        "bytes": documents[1].tolist(),
        "f1": answers,
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }
    write_json(results / f"{cell.name}.json", record)


def train_prepared(
    recipe: Recipe,
    folder: Path,
    target: Path,
    num_points: int,
    look: Callable[[DistillationEngine, TextSide], None] = lambda *_: None,
) -> tuple[list[dict[str, float]], int, tuple[np.ndarray, np.ndarray]]:
    """Trains a recipe's student from its store and measures it (``train_and_measure``); ``look`` sees it at the end."""
    place = make_student(recipe.student, lambda: training_texts(recipe.data), recipe.run.seed, target)
    side = TextSide.of_model(Pretrained(str(place)), recipe.student, "student")
    store = SpectrumStore.open(str(recipe.teacher_named().path), with_top=recipe.objective.num_top_ids > 0)
    held_out = held_out_store(str(recipe.teacher_named().path))
    assert held_out is not None and recipe.data.eval is not None and recipe.training.steps is not None
    cache = folder / "prepared"
    train = Preparer(recipe, side, StoredSide(store)).prepare(recipe.data.train, "data.train", cache)
    evaluated = Preparer(recipe, side, StoredSide(held_out)).prepare(recipe.data.eval, "data.eval", cache)
    engine = DistillationEngine(
        load_student(
            str(place),
            recipe.student,
            student_config(recipe, on_gpu=False),
            training=recipe.training,
            seed=recipe.run.seed,
            total_steps=recipe.training.steps,
            device=CPU,
        ),
        Teachings.of_one(StoredTeacher(store, train.rows), objective_of(recipe, side)),
        ranks=Ranks.current(),
        device=CPU,
    )
    padding = padding_id(side.tokenizer)
    batches = Batcher(train.rows, padding=padding, merge=recipe.objective.merge)
    held_out_batches = Batcher(evaluated.rows, padding=padding)
    measured = train_and_measure(engine, recipe, num_points, batches, held_out_batches)
    look(engine, side)
    engine.student.destroy()
    del engine
    gc.collect()
    return measured


def objective_of(recipe: Recipe, side: TextSide) -> Objective:
    """The recipe's; terms that look at identities read the teacher's tokenizer, never its weights."""
    if not recipe.objective.needs_vocabularies:
        return Objective.from_settings(recipe.objective)
    teacher = Pretrained.from_settings(recipe.teacher_named(), "teacher").tokenizer()
    return Objective.from_settings(recipe.objective, relations_of(side.tokenizer, teacher))


def train_and_measure(
    engine: DistillationEngine, recipe: Recipe, num_points: int, batches: Batcher, held_out: Batcher
) -> tuple[list[dict[str, float]], int, tuple[np.ndarray, np.ndarray]]:
    """The curve of held-out bits per byte, how many steps were skipped, and nats and bytes of each document."""
    steps = recipe.training.steps
    assert steps is not None
    points = {round(steps * (n + 1) / num_points) for n in range(num_points)}
    nats, num_bytes = measured(engine, held_out)
    curve = [{"step": 0, "tokens": 0, "bits": nats_to_bits(float(nats.sum())) / float(num_bytes.sum())}]
    tokens = skipped = 0
    for step in range(steps):
        set_seed(recipe.run.seed * 100_003 + step)
        indices = step_examples(step, len(batches), recipe.training.batch_size, recipe.run.seed)
        dealt = deal(indices, batches.lengths, rank=0, ranks=1, micro_batch_size=recipe.training.micro_batch_size)
        result = engine.train_step(batches.window(dealt))
        tokens += result.student_tokens
        skipped += result.skipped
        if step + 1 in points:
            nats, num_bytes = measured(engine, held_out)
            found = nats_to_bits(float(nats.sum())) / float(num_bytes.sum())
            curve.append({"step": step + 1, "tokens": tokens, "bits": found})
    return curve, skipped, (nats, num_bytes)


def measured(engine: DistillationEngine, batcher: Batcher, per_forward: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Nats [documents] that the student needs for each held-out answer, and its bytes."""
    nats, num_bytes = np.zeros(len(batcher)), np.zeros(len(batcher))
    order = np.argsort(-batcher.lengths, kind="stable")
    for start in range(0, len(order), per_forward):
        places = order[start : start + per_forward]
        (micro_batch,) = batcher.window([places])
        side = micro_batch.student
        found = engine.answer_scores(micro_batch)[:, 0].double() * side.answer_in_text
        sums = torch.zeros(len(places), dtype=torch.float64).index_add_(0, side.answer_example, -found)
        nats[places], num_bytes[places] = sums.numpy(), micro_batch.answer_bytes.numpy()
    return nats, num_bytes


def f1_of_answers(
    engine: DistillationEngine, side: TextSide, rows: list[dict[str, str]], new_tokens: int
) -> list[float]:
    """Token F1, in percent, of greedy answers to the prompts of ``rows``, against the answers in them."""
    prompts = [side.prompt_ids(Example.of(row["prompt"], row["answer"])) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        export_student(engine.student, side.tokenizer, Path(folder) / "export", Ranks.current())
        model = Model(Pretrained(str(Path(folder) / "export")), "fp32", CPU)
    decoding = Decoding(max_new_tokens=new_tokens)
    answers = model.answer(prompts, decoding, [str(n) for n in range(len(rows))])
    said = [Prediction(answer.text, (row["answer"],)) for answer, row in zip(answers, rows, strict=True)]
    found: Any = score(said, ["f1"]).rows[:, 0]
    return [100 * float(value) for value in found]
