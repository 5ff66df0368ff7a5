"""The driver of a training run: prepares what all workers need, starts them, and sees to the end of it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow

from launcher.cluster.actor_checks import check_engine, rollout_actors
from launcher.cluster.connect import check_dashboard_port, connected, prepare_cluster
from launcher.cluster.teacher_precision import with_chosen_precision
from launcher.cluster.worker_group import check_not_stopped, run_worker_group
from launcher.drivers.checkpoint_list import repair_checkpoint_list
from launcher.drivers.preflight import check_deepspeed_configs, check_free_disk, claim_run_dir
from launcher.drivers.sigterm import SigtermStops
from launcher.drivers.store import with_absolute_store
from launcher.jobs.inside import short_stop
from launcher.terminal.progress import ProgressView
from launcher.terminal.quiet import quieten_libraries
from uld_ds.checkpointing.files import any_shards_weights
from uld_ds.data.bad_examples import bad_examples
from uld_ds.data.prepared import PREPARED_DATA, Split
from uld_ds.data.sides import TextSide
from uld_ds.errors import StoppedError, UserError, one_line
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.trial import TrialStudent, try_student, with_own_head
from uld_ds.recipe import Recipe, StudentSettings
from uld_ds.registry.provenance import teacher_facts
from uld_ds.runs.folder import NAMES, RunFolder
from uld_ds.runs.job import Job
from uld_ds.runs.progress import ProgressWriter
from uld_ds.runs.stop_file import StopFile
from uld_ds.tracking import mlflow_runs
from uld_ds.tracking.run_record import begun_run, record_beginning, record_end, settle
from uld_ds.training.deepspeed_config import SMALL_STUDENT, student_config, teacher_configs
from uld_ds.training.preparation import (
    FoundTeacher,
    check_rollouts,
    found_teachers,
    prepared_splits,
    student_place,
    warn_of_splits,
)
from uld_ds.utils.environment import code_revision
from uld_ds.utils.files import write_whole
from uld_ds.utils.redaction import redacted
from uld_ds.workers.train import train_worker

log = logging.getLogger(__name__)


def run_training(recipe: Recipe) -> dict[str, Any]:
    """Run a recipe to its end and return the run's facts.

    A finished run of the same name is not run again: its facts are returned. An unfinished one is resumed.

    Raises:
        UserError: something in the recipe cannot be done.
        RunError: the run failed.
        StoppedError: it was told to stop, by SIGTERM or a file ``STOP`` in its folder.
    """
    begin = time.monotonic()
    quieten_libraries()
    check_deepspeed_configs(recipe)
    check_engine(recipe)
    for teacher in recipe.teachers:
        teacher.codec.to_precision()
    check_dashboard_port(recipe.cluster)
    recipe = with_absolute_store(recipe)
    run_dir = claim_run_dir(recipe)
    folder = RunFolder(run_dir)
    finished = folder.result
    with ProgressView(folder.progress) as view:
        uri = mlflow_runs.tracking_uri(recipe)
        if finished.is_file():
            _settle(uri, run_dir)
            view.note(f"run {recipe.run.name!r} is finished: these are its results (set run.name for another run)")
            return json.loads(finished.read_text(encoding="utf-8"))
        client = mlflow_runs.client_of_run(uri, run_dir)
        mlflow_runs.check_not_deleted(client, recipe, run_dir)
        # What was said to an earlier attempt does not stop this one.
        stop_file = StopFile(run_dir)
        stop_file.clear()
        found = prepare(recipe, run_dir, uri, view)
        actors = rollout_actors(recipe)
        # The run's record begins when nothing that the user asked for can be refused any more.
        with connected(recipe.cluster, run_dir, actors), SigtermStops() as sigterm:
            weight_bytes = found.pop("weight_bytes")
            on_gpu = prepare_cluster(recipe.cluster, run_dir, view.note, actors)
            recipe = with_chosen_precision(recipe, run_dir, view.note, on_gpu=on_gpu)
            run_id = mlflow_runs.open_run(client, recipe, run_dir)
            view.note(f"starting {recipe.cluster.workers} worker(s) on {'GPU' if on_gpu else 'CPU'}")
            if warning := short_stop(recipe.cluster.grace_seconds):
                view.note(warning)
            with _status_of(recipe, uri, run_id, run_dir):
                job = Job(
                    **found,
                    recipe=recipe,
                    run_id=run_id,
                    on_gpu=on_gpu,
                    student_deepspeed=student_config(recipe, on_gpu=on_gpu, weight_bytes=weight_bytes),
                    teachers_deepspeed=teacher_configs(recipe, on_gpu=on_gpu),
                )
                repair_checkpoint_list(run_dir, view.note)
                grace = sigterm.after_a_checkpoint(stop_file, recipe.cluster.grace_seconds)
                with _recorded_beside(client, job), grace:
                    run_worker_group(train_worker, job.to_config(), recipe, run_dir, on_gpu=on_gpu)
                if stop_file.is_asked() and not folder.outcome.is_file():
                    stop_file.clear()
                    raise StoppedError(
                        f"{recipe.run.name!r} was told to stop; the same command goes on where it left off"
                    )
                check_not_stopped(run_dir)
        # Only now is the run finished: this file is what says so.
        facts = json.loads(folder.outcome.read_text(encoding="utf-8")) | {"wall_seconds": time.monotonic() - begin}
        write_whole(finished, json.dumps(facts, indent=1), sync=True)
        if not folder.report_page.is_file():
            view.note(
                f"warning: no {NAMES.report_page} was written (logs say why): uld-ds report {run_dir} tries again"
            )
    return facts


def prepare(recipe: Recipe, run_dir: Path, uri: str, view: ProgressView) -> dict[str, Any]:
    """Find or make models, tokenizers and paired data: the fields of a Job that are known before it has a run.

    Beside them ``weight_bytes``, which decide how the student is sharded by default; None where an earlier attempt has.
    """
    view.note("looking at models and data")
    student = Pretrained.at(student_place(recipe, RunFolder(run_dir).student), recipe.student, "student")
    config = with_own_head(student.config(), Path(student.place), student.key)
    check_rollouts(recipe, config)
    trial = try_student(config, recipe.student, student.place)
    if trial.adapters is not None:
        view.note(trial.adapters)
    # An attempt that began before small students were whole on each worker goes on as it began.
    size = None if any_shards_weights(run_dir) else trial.weight_bytes(recipe.student.precision)
    check_free_disk(run_dir, recipe, _checkpoint_parameters(trial, recipe.student), weight_bytes=size)
    if recipe.student.deepspeed is None and size is not None and size <= SMALL_STUDENT:
        view.note(
            f"the student's {size / 1e6:,.0f} MB of weights are whole on each worker (ZeRO-2); "
            "student.deepspeed: student_zero3_cpu.json or _gpu.json would shard them"
        )
    own = TextSide.of_model(student, recipe.student, "student", special_tokens=recipe.data.special_tokens)
    teachers = found_teachers(recipe, own, run_dir)
    servers = {name: teacher.server for name, teacher in teachers.items() if teacher.server is not None}
    shared = all(teacher.shares_tokenizer for teacher in teachers.values())
    splits = _splits(recipe, run_dir, own, teachers)
    for name, split in splits.items():
        if name == "prompts" or split is not splits.get("prompts"):
            view.note(_described(name, split))
    left_out = {name: bad_examples(split.folder) for name, split in splits.items()}
    write_whole(RunFolder(run_dir).bad_examples, json.dumps(left_out, indent=1))
    warn_of_splits(splits)
    places = {name: str(split.folder) for name, split in splits.items()}
    if shared:
        both = "teacher and student" if len(teachers) == 1 else "teachers and student"
        view.note(f"{both} have one tokenizer: objective.classical (KL, Jensen-Shannon) is possible, too")
    return {
        "run_dir": run_dir,
        "teachers": {name: teacher.place for name, teacher in teachers.items()},
        "student": student.place,
        "weight_bytes": size,
        "tracking_uri": uri,
        "splits": places,
        "servers": servers,
        "teacher_facts": teacher_facts(recipe, {name: teacher.place for name, teacher in teachers.items()}, servers)
        | {"same_tokenizer": shared},
        "code_revision": str(code_revision()),
    }


def _splits(recipe: Recipe, run_dir: Path, student: TextSide, teachers: Mapping[str, FoundTeacher]) -> dict[str, Split]:
    """Prepare the data, shared by all runs in ``run.storage`` that prepare the same rows alike.

    A run keeps the data it began with: what it was is noted in its folder, and the source is not asked again.
    """
    cache = run_dir.parent / PREPARED_DATA
    note = RunFolder(run_dir).prepared
    if note.is_file():
        folders = {name: cache / key for name, key in json.loads(note.read_text(encoding="utf-8")).items()}
        if all(folder.is_dir() for folder in folders.values()):
            return {name: Split.load(folder) for name, folder in folders.items()}
    splits = prepared_splits(recipe, student, teachers, cache)
    keys = {name: split.folder.name for name, split in splits.items()}
    if note.is_file() and RunFolder(run_dir).run_id.exists() and json.loads(note.read_text(encoding="utf-8")) != keys:
        raise UserError(
            "data", f"it has changed since run {recipe.run.name!r} began", "restore it, or set another run.name"
        )
    write_whole(note, json.dumps(keys), sync=True)  # what the run learns from, for as long as it runs
    return splits


def _checkpoint_parameters(trial: TrialStudent, settings: StudentSettings) -> int:
    """Count the student's parameters as a checkpoint holds them: one that does not learn has no optimizer state."""
    # Beside weights in 4 bits, a checkpoint holds what learns alone.
    frozen = 0 if settings.quantize else 0.25
    parameters = trial.model.parameters()
    return int(sum(parameter.numel() * (1 if parameter.requires_grad else frozen) for parameter in parameters))


def _described(name: str, split: Split) -> str:
    facts = split.facts
    skipped = f", {facts.skipped} rows left out ({_reasons(split)})" if facts.skipped else ""
    if not facts.segments:
        return f"{name}: {facts.examples:,} prompts that the student answers itself{skipped}"
    return (
        f"{name}: {facts.examples:,} examples, {facts.answer_bytes / 1e6:.2f} MB of answers, "
        f"{facts.student_tokens:,} student / {facts.teacher_tokens:,} teacher tokens, "
        f"{facts.alignment_rate:.0%} aligned ({facts.student_tokens_per_segment:.2f} / "
        f"{facts.teacher_tokens_per_segment:.2f} tokens per segment){skipped}"
    )


def _reasons(split: Split) -> str:
    counts = bad_examples(split.folder)["by_reason"].items()
    return "; ".join(f"{count} x {reason}" for reason, count in list(counts)[:3])


@contextmanager
def _recorded_beside(client: mlflow.MlflowClient, job: Job) -> Iterator[None]:
    """Record what the run is made of beside the run: a slow server delays nobody."""

    def record() -> None:
        try:
            record_beginning(client, job)
        except Exception as error:  # the first rank tries again at the end
            log.warning("MLflow does not take the run's description yet (%s)", one_line(error))

    thread = threading.Thread(target=record, name="record", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=job.recipe.tracking.patience)


def _settle(uri: str, run_dir: Path) -> None:
    run_id = begun_run(run_dir)
    if run_id is not None:
        settle(uri, run_id, run_dir)


@contextmanager
def _status_of(recipe: Recipe, uri: str, run_id: str, run_dir: Path) -> Iterator[None]:
    """End the MLflow run with what really happened."""
    status, reason = "FAILED", ""
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, StoppedError):
        status = "KILLED"
        raise
    except Exception as error:
        reason = redacted(one_line(error, None))
        raise
    finally:
        ProgressWriter(RunFolder(run_dir).progress).end(status, reason)
        record_end(uri, run_id, run_dir, status, recipe.tracking.patience)
