"""The parts of a run on one rank: engines, batches and evaluators, put together from its job. It knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from uld_ds.data.batching import Batcher, padding_id
from uld_ds.data.dealing import Dealer
from uld_ds.data.step_batches import StepBatches
from uld_ds.evaluation.bits_per_byte import student_scorer
from uld_ds.evaluation.held_out import Evaluation, HeldOut
from uld_ds.losses.objective import Objective
from uld_ds.models.pretrained import Pretrained
from uld_ds.runs.job import Job
from uld_ds.teachers.source import TeacherSource
from uld_ds.training.callbacks import Evaluator
from uld_ds.training.engine import DistillationEngine
from uld_ds.training.engines import load_student
from uld_ds.training.rollout_batches import RolloutBatches
from uld_ds.training.rollout_setup import MakeEngine, RolloutSetup
from uld_ds.training.teacher_setup import TeacherSetup
from uld_ds.training.teaching import Teaching, Teachings
from uld_ds.utils.distributed import Ranks


@dataclass(frozen=True)
class Assembly:
    """The parts that a trainer works with, and those that its surroundings may want to look at."""

    engine: DistillationEngine
    batches: StepBatches | RolloutBatches
    evaluators: dict[str, Evaluator]
    """Evaluators of ``teacher`` and ``student`` on held-out examples; empty where there are none."""
    teachers: tuple[TeacherSetup, ...]
    """The run's teachers, in the order of its engine's."""
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
    setups = tuple(TeacherSetup(job, settings, ranks=ranks, device=device, stage=stage) for settings in recipe.teachers)
    own = None if recipe.rollouts is None else RolloutSetup(job, ranks=ranks, device=device)
    train_rows = job.rows("train") if own is None else own.given
    eval_rows = job.rows("eval") if recipe.data.eval else None

    def batcher(rows: Dataset) -> Batcher:
        return Batcher(rows, padding=padding_id(tokenizer), merge=recipe.objective.merge)

    train_data = batcher(train_rows)
    dealer = _dealer(job, ranks)
    given = StepBatches(train_data, recipe.training, seed=recipe.run.seed, dealer=dealer)
    # Teachers first: their sharding must not see the student's configuration.
    sources = [setup.source(train_rows, begins=begins) for setup in setups]
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
    dealer.padded = not student.module.packs
    engine = DistillationEngine(
        student, _teachings(job, setups, sources, tokenizer, device), ranks=ranks, device=device
    )
    batches: StepBatches | RolloutBatches = given
    if own is not None:
        folder = rounds_folder or job.folder.rollouts

        def ask_about(rows: Dataset) -> None:
            for setup, source in zip(setups, sources, strict=True):
                setup.ask_about(source, rows)

        batches = own.batches(student, ask_about, folder, make_rollout_engine, dealer=dealer)
    if eval_rows is None:
        return Assembly(engine, batches, {}, setups, tokenizer, train_data, train_rows)
    eval_data = batcher(eval_rows)
    evaluators = _evaluators(job, engine, setups, eval_rows, batcher)
    return Assembly(engine, batches, evaluators, setups, tokenizer, eval_data, train_rows)


def _dealer(job: Job, ranks: Ranks) -> Dealer:
    """Make the dealer of steps' examples, which knows at which length the student's attention is half of the work."""
    config = Pretrained.at(job.student, job.recipe.student, "student").config()
    return Dealer(job.recipe.training, ranks, knee=6.0 * config.get_text_config().hidden_size)


def _teachings(
    job: Job,
    setups: Sequence[TeacherSetup],
    sources: Sequence[TeacherSource],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> Teachings:
    """Give each teacher its part of the loss."""
    recipe, teachings = job.recipe, []
    for setup, source in zip(setups, sources, strict=True):
        relations = setup.relations(tokenizer)
        objective = Objective.from_settings(recipe.objective, relations, device, rollouts=recipe.rollouts)
        teachings.append(Teaching(setup.settings.name, source, objective, setup.settings.weight))
    return Teachings(tuple(teachings), recipe.objective.combine)


def _evaluators(
    job: Job,
    engine: DistillationEngine,
    setups: Sequence[TeacherSetup],
    rows: Dataset,
    batcher: Callable[[Dataset], Batcher],
) -> dict[str, Evaluator]:
    size = job.recipe.evaluation.micro_batch_size

    def held_out(of_rows: Dataset) -> HeldOut:
        return HeldOut(batcher(of_rows), micro_batch_size=size, ranks=engine.ranks, device=engine.device)

    every = held_out(rows)

    def teacher() -> Evaluation | None:
        found: dict[str, tuple[Evaluation, float]] = {}
        for setup, teaching, share in zip(setups, engine.teachings.teachers, engine.teachings.shares, strict=True):
            judged = setup.batcher(rows).judged
            own = rows if len(judged) == len(rows) else rows.select(judged)
            scores = setup.scores(teaching.source, own) if len(judged) else None
            if scores is not None:
                measured = every if own is rows else held_out(own)
                part = share if engine.teachings.combine != "route" else float(sum(own["answer_bytes"]))
                found[teaching.name] = measured.measure(scores), part
        return together(found)

    return {"teacher": teacher, "student": lambda: every.measure(student_scorer(engine))}


def together(found: Mapping[str, tuple[Evaluation, float]]) -> Evaluation | None:
    """Average the measurements of several teachers; that of one stays as it is, and of none there is none.

    Args:
        found: measurement of each, and its share in the mean; shares need not add up to 1.
    """
    if len(found) <= 1:
        return next((evaluation for evaluation, _ in found.values()), None)
    whole = sum(share for _, share in found.values())
    return Evaluation(
        bits_per_byte=sum(evaluation.bits_per_byte * share for evaluation, share in found.values()) / whole,
        seconds=sum(evaluation.seconds for evaluation, _ in found.values()),
        calibration=next(iter(found.values()))[0].calibration,
        by_teacher={name: evaluation.bits_per_byte for name, (evaluation, _) in found.items()},
    )
