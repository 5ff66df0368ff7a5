"""The trained student in the MLflow model registry: once per run, complete or not at all.

Everything goes through a client of the run's own server: MLflow's fluent functions would change the process's
environment, and would load the model a second time to try its input example.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_ds.registry import flavor
from uld_ds.registry.links import LOGGED_NAME, is_ready, link_all, link_output, logged_students
from uld_ds.registry.served_student import MESSAGES, PROMPT

PINNED = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "pandas", "mlflow")


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry, or a logged model without one (``version`` None)."""

    name: str | None
    version: str | None
    uri: str


def pinned_requirements() -> list[str]:
    """List the packages that loading and running the student needs, at the versions installed here."""
    # A local build's suffix (+cpu) is not installable elsewhere.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in PINNED]


def log_student(
    client: mlflow.MlflowClient,
    run_id: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str | None,
    alias: str,
    example: Any,
    facts: Mapping[str, Any],
    description: str,
    chat: Mapping[str, Any] | None = None,
    model_card: str | None = None,
    workspace: Path | None = None,
) -> RegisteredModel:
    """Log the student to its run and, with a ``name``, register it.

    The alias is moved last, so that nobody who follows it ever meets half a model; a repeated call after an
    interruption finds what is there, adds no second version, and makes the links between run, logged model and version
    that are missing.

    Args:
        client: client of the run's server.
        run_id: id of the MLflow run.
        model: the exported student, on the CPU. It is written from there, not loaded again.
        tokenizer: the student's.
        name: name of the registered model; None registers nothing.
        alias: alias that is moved to the new version.
        example: an input of the pyfunc: messages or a prompt.
        facts: tags of the logged model and of the version.
        description: Markdown shown with the version.
        chat: what the served student is to know of its chat template (``TextSide.served_chat``).
        model_card: Markdown that goes with the files.
        workspace: folder with room for a copy of the model; default: the system's for temporary files.
    """
    tags = {key: str(value) for key, value in facts.items()}
    if name is None:
        logged = _logged_model(client, run_id, model, tokenizer, example, tags, chat, model_card, workspace)
        return RegisteredModel(None, None, logged.model_uri)
    version = _version_of_run(client, run_id, name)
    if version is None:
        logged = _logged_model(client, run_id, model, tokenizer, example, tags, chat, model_card, workspace)
        version = _new_version(client, run_id, name, logged, tags, description)
    link_all(client, version)
    client.set_registered_model_alias(name, alias, version.version)
    return RegisteredModel(name, str(version.version), f"models:/{name}/{version.version}")


def example_input(prompt: str | None, messages: list[dict[str, str]] | None) -> dict[str, Any]:
    """Make an input for the pyfunc: a conversation if there is one, else a text."""
    return {MESSAGES: messages} if messages else {PROMPT: prompt}


def _logged_model(
    client: mlflow.MlflowClient,
    run_id: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    example: Any,
    tags: dict[str, str],
    chat: Mapping[str, Any] | None,
    model_card: str | None,
    workspace: Path | None,
) -> LoggedModel:
    # MLflow's progress bars make no sense in a worker's log, nor does news about the hub's model cards.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)
    for logged in logged_students(client, run_id):
        if is_ready(logged):
            link_output(client, run_id, logged)
            return logged
        client.delete_logged_model(logged.model_id)
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, LOGGED_NAME, source_run_id=run_id, tags=tags)
    folder = Path(tempfile.mkdtemp(prefix="student-", dir=workspace))
    try:
        # A path of this machine means nothing to whoever loads the model.
        model.name_or_path = model.config.name_or_path = LOGGED_NAME
        flavor.save_model(
            str(folder / "model"),
            Model(run_id=run_id, model_id=logged.model_id, metadata=dict(tags)),
            model=model,
            tokenizer=tokenizer,
            input_example=example,
            pip_requirements=pinned_requirements(),
            chat=chat,
            model_card=model_card,
        )
        client.log_model_artifacts(logged.model_id, str(folder / "model"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ready = client.finalize_logged_model(logged.model_id, "READY")
    link_output(client, run_id, ready)
    return ready


def _version_of_run(client: mlflow.MlflowClient, run_id: str, name: str) -> ModelVersion | None:
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return next((version for version in versions if version.run_id == run_id), None)


def _new_version(
    client: mlflow.MlflowClient, run_id: str, name: str, logged: LoggedModel, tags: dict[str, str], description: str
) -> ModelVersion:
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name, description=f"Students distilled by uld-ds. {_HOW}")
    # A server resolves the model itself, and takes no folder on trust. Without one, MLflow would look for the model in
    # whatever database this process's environment names.
    by_server = client.tracking_uri.startswith(("http://", "https://"))
    source = logged.model_uri if by_server else logged.artifact_location
    return client.create_model_version(
        name, source, run_id=run_id, tags=tags, description=description, model_id=logged.model_id
    )


_HOW = "Each version's page says what it was made from, and how well it does."
