"""The end of a run on rank 0: a sample answer, the registry, the result file."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import mlflow
import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from uld_ds.checkpointing.state import TrainState
from uld_ds.data.sides import TextSide
from uld_ds.errors import one_line
from uld_ds.generation.decoding import Answer
from uld_ds.generation.samples import sample_answers
from uld_ds.models.architectures import auto_class, is_encoder_decoder
from uld_ds.models.older_readers import readers_of
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import Recipe
from uld_ds.recipe.objective import LOSS_TERMS
from uld_ds.recipe.renamed_keys import with_former_names
from uld_ds.registry.log_student import RegisteredModel, example_input, log_student
from uld_ds.registry.provenance import student_base
from uld_ds.reporting.model_card import description, model_card
from uld_ds.reporting.run_html import write_report
from uld_ds.runs.job import Job
from uld_ds.runs.progress import ProgressWriter
from uld_ds.tokenization.loading import load_tokenizer, tokenizer_digest
from uld_ds.tracking import mlflow_runs
from uld_ds.tracking.recorder import Recorder
from uld_ds.tracking.run_record import log_own_answers, log_plots, record_beginning
from uld_ds.utils.environment import library_versions
from uld_ds.utils.files import write_whole
from uld_ds.utils.redaction import Redactor
from uld_ds.workers.report_snapshots import write_answers

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sample:
    """A held-out prompt and the student's own answer, with the reasoning before it if there is any."""

    prompt: str
    answer: str
    reasoning: str = ""


@dataclass(frozen=True)
class Exported:
    """The student as the run's folder has it now."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    side: TextSide
    """How it reads prompts and answers."""

    @classmethod
    def of(cls, job: Job) -> Exported:
        """Load it, in its own type, on the CPU."""
        model = auto_class(AutoConfig.from_pretrained(job.folder.export)).from_pretrained(job.folder.export)
        tokenizer = load_tokenizer(str(job.folder.export), None, "student")
        return cls(model.eval(), tokenizer, TextSide(tokenizer, job.recipe.student, "student"))


def finish(
    job: Job,
    recorder: Recorder,
    progress: ProgressWriter,
    state: TrainState,
    bits_after: float | None,
    peak_memory: int,
) -> None:
    """Register the exported student and write down the run's facts: the last thing that the first rank does.

    Args:
        job: the run.
        recorder: recorder of the run's metrics, which is closed.
        progress: writer of the run's progress.
        state: state after the last step.
        bits_after: held-out bits per byte of the trained student, if measured.
        peak_memory: most bytes that any rank has held.

    Raises:
        RunError: MLflow does not answer.
    """
    recorder.metrics(state.step, {"peak_memory_bytes/largest_rank": float(peak_memory)})
    client = recorder.close()
    record_beginning(client, job)
    plots = log_plots(client, job.run_id, job.run_dir)
    log_own_answers(client, job.run_id, job.run_dir)
    progress.stage("registering the student" if job.recipe.registry.model_name else "logging the student")
    torch.manual_seed(job.recipe.run.seed)
    student = Exported.of(job)
    sample = _sample(job, student)
    facts = _facts(job, state, bits_after, student.tokenizer)
    card = _write_card(job, facts)
    about = description(job.recipe.run.name, facts, job.run_id, plots)
    client.set_tag(job.run_id, "mlflow.note.content", about)
    registered = _register(job, client, student, sample, facts, about=about, card=card)
    result = _result(job, state, student, registered, sample, bits_after=bits_after, peak_memory=peak_memory)
    client.log_dict(job.run_id, Redactor().tree(result), job.folder.result.name)
    if _report(job, facts, result):
        client.log_artifact(job.run_id, str(job.folder.report_page))
    # Synchronized, as the export is: a run that says so is finished, and is not run again.
    write_whole(job.folder.outcome, json.dumps(result, indent=1), sync=True)


def _sample(job: Job, student: Exported) -> Sample:
    """Ask the student about held-out prompts; the report keeps its answers, and those from before training."""
    _, rows = job.shown_rows()
    after = sample_answers(student.model, student.side, rows, "student", job.recipe.evaluation.sample_tokens, CPU)
    write_answers(job, student.side, {"before": _answers_before(job, student.side, rows), "after": after})
    return Sample(rows[0]["prompt"], *((after[0].text, after[0].reasoning) if after else ("",)))


def _write_card(job: Job, facts: dict[str, Any]) -> str:
    """Write the model card beside the exported weights, and return it, without secrets."""
    card = Redactor().text(model_card(job.recipe, facts, job.teachers, readers=readers_of(job.folder.export)))
    write_whole(job.folder.export / "README.md", card, sync=True)
    return card


def _register(
    job: Job,
    client: mlflow.MlflowClient,
    student: Exported,
    sample: Sample,
    facts: dict[str, Any],
    *,
    about: str,
    card: str,
) -> RegisteredModel:
    """Log the student to the run, and register it where the recipe names a model."""
    # A held-out prompt is rendered already; as a message it would be rendered twice.
    messages = [{"role": "user", "content": "Hello, what can you do?"}] if student.tokenizer.chat_template else None
    return log_student(
        client,
        job.run_id,
        student.model,
        student.tokenizer,
        name=job.recipe.registry.model_name,
        alias=job.recipe.registry.alias,
        example=example_input(sample.prompt, messages),
        facts=facts,
        description=about,
        chat=student.side.served_chat(),
        model_card=card,
        workspace=job.run_dir,
    )


def _result(
    job: Job,
    state: TrainState,
    student: Exported,
    registered: RegisteredModel,
    sample: Sample,
    *,
    bits_after: float | None,
    peak_memory: int,
) -> dict[str, Any]:
    """Collect what the command prints in the end, with ``--json`` as it is."""
    data = job.split("train").facts
    return {
        "run_id": job.run_id,
        "model_name": registered.name,
        "model_version": registered.version,
        "model_uri": registered.uri,
        "tracking_uri": mlflow_runs.shown(job.tracking_uri),
        "export_dir": str(job.folder.export),
        "bits_per_byte": {"before": state.bits_before, "after": bits_after, "teacher": state.bits_teacher},
        "tokens_per_second": state.tokens / state.train_seconds if state.train_seconds else None,
        # Of prompts alone there is none, and JSON has no number for that.
        "alignment_rate": data.alignment_rate if data.segments else None,
        "same_tokenizer": job.teacher_facts.get("same_tokenizer"),
        "has_encoder": is_encoder_decoder(student.model.config),
        "peak_memory_bytes": peak_memory,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "best_checkpoint": None if state.best_step is None else _best(job, state),
        "final_loss": state.final_loss,
        "sample": asdict(sample),
    }


def _best(job: Job, state: TrainState) -> dict[str, Any]:
    return {"step": state.best_step, "bits_per_byte": state.best_bits, "folder": str(job.folder.best)}


def _answers_before(job: Job, side: TextSide, rows: Dataset) -> list[Answer]:
    """Ask the student as it was before training for its answers; empty where it cannot be loaded any more."""
    try:
        model = Pretrained.at(job.student, job.recipe.student, "student").load()
    except Exception as error:  # its folder may be gone; a report without it is still one
        log.warning("no answers of the student before: %s", one_line(error))
        return []
    return sample_answers(model.eval(), side, rows, "student", job.recipe.evaluation.sample_tokens, CPU)


def _report(job: Job, facts: dict[str, Any], result: dict[str, Any]) -> bool:
    """Write the run's report page, and return whether that was possible; a student is not lost for want of one."""
    write_whole(job.folder.report_lineage, json.dumps(facts), sync=True)
    try:
        write_report(job.run_dir, job.folder.report_page, result=result)
    except Exception:
        log.exception("no report of this run (uld-ds report %s writes it later)", job.run_dir)
        return False
    return True


def _rollouts(recipe: Recipe) -> str | None:
    """Write how the student's own answers came to be, and what they weighed, as JSON; None without any."""
    if recipe.rollouts is None:
        return None
    settings = recipe.rollouts.model_dump(mode="json", exclude={"prompts", "actors", "batch_size"})
    weights = recipe.rollouts.weights(recipe.objective)
    # What terms of own answers alone are is nowhere else among the facts.
    details = {
        name: getattr(recipe.objective, name) for key in weights if weights[key] for name in LOSS_TERMS[key].details
    }
    return json.dumps(settings | {"objective": weights | details})


def _facts(job: Job, state: TrainState, bits_after: float | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Collect the facts that a registered version has as tags, without secrets."""
    recipe, objective = job.recipe, job.recipe.objective
    data = job.split("train").facts
    held_out = {"eval_data_digest": job.split("eval").facts.digest} if "eval" in job.splits else {}
    libraries = library_versions()
    shaping = {"keep_layers", "embeddings", "freeze", "lora"}
    student = recipe.student.model_dump(mode="json", include=shaping, exclude_defaults=True)
    # Tags keep the names that they have in versions which are there already.
    shape = with_former_names({"student": student})["student"]
    facts = {
        **job.teacher_facts,
        "student": student_base(recipe),
        **{f"student_{name}": json.dumps(value) for name, value in shape.items()},
        "student_revision": recipe.student.revision,
        "student_tokenizer_digest": tokenizer_digest(tokenizer),
        "recipe_digest": recipe.digest(),
        "data_digest": data.digest,
        **held_out,
        "combine": None if len(recipe.teachers) == 1 else objective.combine,
        "alignment": objective.alignment,
        # Of prompts alone there is none.
        "alignment_rate": round(data.alignment_rate, 6) if data.segments else None,
        "merge": objective.merge,
        **{name: value for term in LOSS_TERMS.values() for name, value in term.facts(objective).items()},
        "rollouts": _rollouts(recipe),
        "student_temperature": objective.student_temperature,
        "teacher_temperature": objective.teacher_temperature,
        # Registered versions have the fact by this name.
        "normalise": objective.normalize,  # codespell:ignore normalise
        "steps": state.step,
        "bits_per_byte_before": state.bits_before,
        "bits_per_byte_after": bits_after,
        "bits_per_byte_teacher": state.bits_teacher,
        "code_revision": job.code_revision,
        "libraries": ", ".join(f"{name} {version}" for name, version in libraries.items()),
    }
    return dict(Redactor().tree({key: value for key, value in facts.items() if value is not None}))
