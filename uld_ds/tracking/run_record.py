"""The record of an MLflow run besides its metrics: what it was made of at its beginning, how it ended."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
from mlflow.entities import Dataset, DatasetInput, InputTag

from uld_ds.data.bad_examples import bad_examples
from uld_ds.data.statistics import DataFacts
from uld_ds.errors import one_line
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import DataSource, FilesSource, HubSource, Recipe
from uld_ds.recipe.renamed_keys import with_former_names
from uld_ds.reporting.alignment_examples import alignments
from uld_ds.reporting.alignment_html import alignment_page
from uld_ds.reporting.plots import plots
from uld_ds.runs.folder import RunFolder
from uld_ds.runs.job import Job
from uld_ds.runs.progress import read_events
from uld_ds.runs.rounds import shown_answers_of
from uld_ds.tracking import mlflow_runs
from uld_ds.tracking.delivery import Delivery
from uld_ds.tracking.journal import history
from uld_ds.utils.environment import code_revision, environment
from uld_ds.utils.files import write_whole
from uld_ds.utils.redaction import Redactor

log = logging.getLogger(__name__)

_RECORDED = "uld_ds.recorded"
_CONTEXTS = {"train": "training", "eval": "evaluation", "prompts": "rollouts"}
# MLflow's own bound is 36 characters.
_DIGEST_LENGTH = 32
_SHOWN_EXAMPLES = 3
_OF_ANSWERS = ("prompt", "answer", "ended", "student_nats", "teacher_nats", "bytes")
_SECONDS_FOR_A_FAILURE = 60.0
_SECONDS_WHEN_KILLED = 10.0


def record_beginning(client: mlflow.MlflowClient, job: Job) -> None:
    """Record params, tags, datasets and artifacts, once per run; an interrupted record is written again, the same."""
    run_id = job.run_id
    if _RECORDED in client.get_run(run_id).data.tags:
        return
    redactor = Redactor()
    recipe = redactor.tree(job.recipe.model_dump(mode="json"))
    # By the names that params have in runs which are there already.
    mlflow_runs.log_params(client, run_id, _params(job.recipe))
    code = code_revision()
    tags = {"mlflow.source.git.commit": code.revision} if code.dirty is not None else {}
    digests = {"recipe_digest": job.recipe.digest(), "data_digest": job.split("train").facts.digest}
    known = {key: value for key, value in job.teacher_facts.items() if value is not None}
    mlflow_runs.log_tags(client, run_id, {**tags, "code_revision": job.code_revision, **digests, **known})
    client.log_inputs(run_id, list(_datasets(job)))
    client.log_text(run_id, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), job.folder.recipe.name)
    client.log_dict(run_id, redactor.tree(environment()), "environment.json")
    client.log_dict(run_id, redactor.tree(job.student_deepspeed), "deepspeed/student.json")
    for teacher in job.recipe.teachers:
        if teacher.source == "online":
            client.log_dict(
                run_id, redactor.tree(job.teachers_deepspeed[teacher.name]), f"deepspeed/{teacher.name}.json"
            )
    client.log_dict(run_id, alignment_report(job), "alignment/report.json")
    left_out = {name: bad_examples(Path(folder)) for name, folder in job.splits.items()}
    client.log_dict(run_id, redactor.tree(left_out), f"data/{job.folder.bad_examples.name}")
    for name, page in _alignment_pages(job):
        client.log_text(run_id, redactor.text(page), f"alignment/{name}")
    client.set_tag(run_id, _RECORDED, "true")


def _params(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as params, several teachers by their names."""
    plain = with_former_names(recipe.model_dump(mode="json"))
    if "teachers" in plain:
        plain["teachers"] = {teacher["name"]: teacher for teacher in plain["teachers"]}
    return plain


def _datasets(job: Job) -> Iterator[DatasetInput]:
    data, rollouts = job.recipe.data, job.recipe.rollouts
    sources = {"train": data.train, "eval": data.eval}
    if rollouts is not None:
        sources["prompts"] = rollouts.prompts or data.train
        if job.recipe.only_own_answers:
            sources["train"] = sources["prompts"]
    redactor = Redactor()
    for name in job.splits:
        source, facts = sources[name], job.split(name).facts
        assert source is not None
        where = dataset_source(source)
        profile = {"num_rows": facts.examples, **_report(facts)}
        columns = dict.fromkeys(_columns(job.recipe), "string")
        dataset = Dataset(
            name=f"{job.recipe.run.name}-{name}",
            digest=facts.digest[:_DIGEST_LENGTH],
            source_type=where._get_source_type(),
            source=json.dumps(redactor.tree(json.loads(where.to_json()))),
            schema=json.dumps({"mlflow_colspec": [{"name": c, "type": t} for c, t in columns.items()]}),
            profile=json.dumps(profile),
        )
        yield DatasetInput(dataset, [InputTag("mlflow.data.context", _CONTEXTS[name])])


def _columns(recipe: Recipe) -> list[str]:
    columns = recipe.data.columns
    return [columns.messages] if columns.messages else [columns.prompt, columns.answer]


def dataset_source(source: DataSource) -> DatasetSource:
    """Convert a recipe's data source to MLflow's, from which the data can be read again."""
    if isinstance(source, HubSource):
        return HuggingFaceDatasetSource(
            source.dataset, config_name=source.config, split=source.split, revision=source.revision
        )
    if isinstance(source, FilesSource) and isinstance(source.path, str) and not any(c in source.path for c in "*?["):
        with warnings.catch_warnings():
            # MLflow registers its class for local files twice, and says so.
            warnings.simplefilter("ignore", UserWarning)
            return resolve_dataset_source(source.path)
    return CodeDatasetSource({"uld_ds": source.model_dump(mode="json", exclude_none=True)})


def alignment_report(job: Job) -> dict[str, Any]:
    """Report figures of both splits: how the two tokenizers cut the answers, and where they agree."""
    objective = job.recipe.objective
    splits = {name: _report(job.split(name).facts) for name in job.splits}
    return {"alignment": objective.alignment, "merge": objective.merge, "splits": splits}


def _report(facts: DataFacts) -> dict[str, Any]:
    if not facts.segments:  # prompts, which have no answers yet
        return {"examples": facts.examples, "skipped": facts.skipped, "digest": facts.digest}
    return {
        **asdict(facts),
        "alignment_rate": facts.alignment_rate,
        "student_tokens_per_segment": facts.student_tokens_per_segment,
        "teacher_tokens_per_segment": facts.teacher_tokens_per_segment,
    }


def _alignment_pages(job: Job) -> Iterator[tuple[str, str]]:
    """Yield the first answers as both tokenizers cut them, each as a file name and a page of HTML.

    They are those of held-out examples where there are some. A stored teacher has no tokenizer at hand: no pages then.
    """
    recipe = job.recipe
    number, rows = job.shown_rows()
    shown = recipe.teachers[number]
    if shown.source == "stored":
        return
    student = Pretrained.at(job.student, recipe.student, "student").tokenizer()
    teacher = Pretrained.at(job.teachers[shown.name], shown, shown.key).tokenizer()
    names = (recipe.student.model or "student", shown.model or "teacher")
    views = alignments(rows.select(range(min(_SHOWN_EXAMPLES, len(rows)))), student, teacher, names)
    for number, view in enumerate(views, 1):
        yield f"example-{number}.html", alignment_page(view)


def log_plots(client: mlflow.MlflowClient, run_id: str, run_dir: Path) -> list[str]:
    """Draw the run's metrics so far as artifacts of the MLflow run, and return their paths."""
    paths = []
    for name, picture in plots(history(RunFolder(run_dir).metrics)):
        client.log_text(run_id, picture, f"plots/{name}")
        paths.append(f"plots/{name}")
    return paths


def log_own_answers(client: mlflow.MlflowClient, run_id: str, run_dir: Path) -> None:
    """Record what the run has shown of the student's own answers so far, as one table; nothing without rollouts."""
    rows = [
        [event["round"], event["step"], *(answer.get(name) for name in _OF_ANSWERS)]
        for event in shown_answers_of(read_events(RunFolder(run_dir).progress))
        for answer in event["answers"]
    ]
    if rows:
        table = {"columns": ["round", "step", *_OF_ANSWERS], "data": Redactor().tree(rows)}
        client.log_dict(run_id, table, f"{RunFolder(run_dir).rollouts.name}/shown.json")


def record_end(uri: str, run_id: str, run_dir: Path, status: str, patience: float) -> None:
    """Record how a run ended, FINISHED, FAILED or KILLED, and deliver what is left of its metrics.

    Nobody writes journals any more. A server that does not answer in time is told by the next command that
    meets this run.

    Args:
        uri: MLflow's tracking URI.
        run_id: id of the MLflow run.
        run_dir: the run's folder.
        status: ``FINISHED``, ``FAILED`` or ``KILLED``.
        patience: seconds to wait for a server that does not answer; fewer unless the run has finished.
    """
    write_whole(RunFolder(run_dir).run_status, status, sync=True)  # nobody else knows how it ended
    if status != "FINISHED":
        patience = min(patience, _SECONDS_WHEN_KILLED if status == "KILLED" else _SECONDS_FOR_A_FAILURE)
    settle(uri, run_id, run_dir, patience)


def settle(uri: str, run_id: str, run_dir: Path, patience: float = 0.0) -> None:
    """Deliver metrics and status that an earlier end of the run could not, for ``patience`` seconds."""
    note = RunFolder(run_dir).run_status
    if not note.is_file():
        return
    status = note.read_text(encoding="utf-8")
    end = time.monotonic() + patience
    if not Delivery(RunFolder(run_dir).metrics, run_id, lambda: mlflow_runs.client_for(uri)).drain(patience):
        return
    while True:
        try:
            client = mlflow_runs.client_for(uri)
            if status != "FINISHED":
                log_plots(client, run_id, run_dir)
                log_own_answers(client, run_id, run_dir)
            client.set_terminated(run_id, status)
            note.unlink()
            return
        except Exception as error:  # it may have gone again
            if time.monotonic() >= end:
                log.warning("MLflow was not told that run %s is %s (%s)", run_id, status, one_line(error))
                return
            time.sleep(1)


def begun_run(run_dir: Path) -> str | None:
    """Read the id of a run's MLflow run, or None before training has begun."""
    file = RunFolder(run_dir).run_id
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None
