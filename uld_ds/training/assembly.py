"""The parts of a run on one rank: engines, batches and evaluators, put together from its job. It knows no Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from uld_ds.data.batching import Batcher, padding_id
from uld_ds.data.step_batches import StepBatches
from uld_ds.evaluation.bits_per_byte import student_scorer
from uld_ds.evaluation.held_out import Evaluation, HeldOut
from uld_ds.losses.objective import Objective
from uld_ds.models.pretrained import Pretrained
from uld_ds.runs.job import Job
from uld_ds.training.callbacks import Evaluator
from uld_ds.training.engine import DistillationEngine
from uld_ds.training.engines import load_student
from uld_ds.training.rollout_batches import RolloutBatches
from uld_ds.training.rollout_setup import MakeEngine, RolloutSetup
from uld_ds.training.teacher_setup import TeacherSetup
from uld_ds.utils.distributed import Ranks


@dataclass(frozen=True)
class Assembly:
    """The parts that a trainer works with, and those that its surroundings may want to look at."""

    engine: DistillationEngine
    batches: StepBatches | RolloutBatches
    evaluators: dict[str, Evaluator]
    """Evaluators of ``teacher`` and ``student`` on held-out examples; empty where there are none."""
    teacher: TeacherSetup
    tokenizer: PreTrainedTokenizerBase
    """The student's tokenizer."""
    shown: Batcher
    """Batcher of the student's side of the examples that a report shows: held-out ones where there are some."""
    train_rows: Dataset
    """Prepared training examples that were given."""

    @property
    def rounds(self) -> RolloutBatches | None:
        """Rounds of the student's own answers; None in a run without rollouts."""
        return self.batches if isinstance(self.batches, RolloutBatches) else None


def assemble(
    job: Job,
    *,
    ranks: Ranks,
    device: torch.device,
    begins: bool = True,
    stage: Callable[[str], None] = lambda _: None,
    make_rollout_engine: MakeEngine | None = None,
    rounds_folder: Path | None = None,
) -> Assembly:
    """Load teacher and student into their engines, and lay out the data. Collective.

    Args:
        job: the run.
        ranks: the process group, which is initialized.
        device: device of this rank.
        begins: the run does not resume from a checkpoint, so the teacher itself is measured, too.
        stage: called with a sentence about what takes a while.
        make_rollout_engine: makes what samples rollouts, where that is not the student in the workers.
        rounds_folder: where rounds of rollouts are kept, if not in the run's folder.

    Raises:
        UserError, RunError: a model or a store cannot be loaded.
    """
    recipe = job.recipe
    tokenizer = Pretrained.at(job.student, recipe.student, "student").tokenizer()
    setup = TeacherSetup(job, ranks=ranks, device=device, stage=stage)
    own = None if recipe.rollouts is None else RolloutSetup(job, ranks=ranks, device=device)
    train_rows = job.rows("train") if own is None else own.given
    eval_rows = job.rows("eval") if recipe.data.eval else None

    def batcher(rows: Dataset) -> Batcher:
        return Batcher(rows, padding=padding_id(tokenizer), merge=recipe.objective.merge)

    train_data = batcher(train_rows)
    given = StepBatches(train_data, recipe.training, seed=recipe.run.seed, ranks=ranks)
    # Teacher first: its sharding must not see the student's configuration.
    source = setup.source(train_rows, begins=begins)
    stage("loading the student")
    student = load_student(
        job.student,
        recipe.student,
        job.student_deepspeed,
        training=recipe.training,
        seed=recipe.run.seed,
        total_steps=given.num_steps if own is None else own.plan().total_steps,
        device=device,
    )
    objective = Objective.from_settings(recipe.objective, setup.relations(tokenizer), device, rollouts=recipe.rollouts)
    engine = DistillationEngine(student, source, objective, ranks=ranks, device=device)
    batches: StepBatches | RolloutBatches = given
    if own is not None:
        folder = rounds_folder or job.folder.rollouts
        batches = own.batches(student, lambda rows: setup.ask_about(source, rows), folder, make_rollout_engine)
    if eval_rows is None:
        return Assembly(engine, batches, {}, setup, tokenizer, train_data, train_rows)
    eval_data = batcher(eval_rows)
    evaluators = _evaluators(job, engine, setup, eval_rows, eval_data)
    return Assembly(engine, batches, evaluators, setup, tokenizer, eval_data, train_rows)


def _evaluators(
    job: Job, engine: DistillationEngine, setup: TeacherSetup, rows: Dataset, data: Batcher
) -> dict[str, Evaluator]:
    size = job.recipe.evaluation.micro_batch_size
    held_out = HeldOut(data, micro_batch_size=size, ranks=engine.ranks, device=engine.device)

    def teacher() -> Evaluation | None:
        scores = setup.scores(engine.teacher, rows)
        return None if scores is None else held_out.measure(scores)

    return {"teacher": teacher, "student": lambda: held_out.measure(student_scorer(engine))}
