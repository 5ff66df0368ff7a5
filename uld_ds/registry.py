"""The trained student in the MLflow model registry: once per run, complete or not at all."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from typing import Any

import mlflow
import mlflow.transformers
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import infer_signature
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PINNED = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "mlflow")

# What callers of the pyfunc may set, with its defaults.
GENERATION: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False, "temperature": 1.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry, or a logged model without one (``version`` None)."""

    name: str | None
    version: str | None
    uri: str


def pinned_requirements() -> list[str]:
    """What loading and running the student needs, at the versions it was made with."""
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
    example: tuple[str, str],
    facts: dict[str, Any],
    description: str,
) -> RegisteredModel:
    """Logs the student to its run and, with a ``name``, registers it.

    The alias is moved last, so that nobody who follows it ever meets half a model; a repeated call after an
    interruption finds what is there and adds no second version.

    Args:
        model: the exported student, on the CPU.
        example: a prompt and the student's answer, for the signature.
        facts: metadata of the logged model and tags of the version.
        description: Markdown shown with the version.
    """
    if name is None:
        return RegisteredModel(None, None, _logged_model(client, run_id, model, tokenizer, example, facts))
    version = _version_of_run(client, run_id, name)
    if version is None:
        uri = _logged_model(client, run_id, model, tokenizer, example, facts)
        version = _new_version(client, run_id, name, uri, facts, description)
    client.set_registered_model_alias(name, alias, version.version)
    return RegisteredModel(name, str(version.version), str(version.source))


def _logged_model(
    client: mlflow.MlflowClient,
    run_id: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    example: tuple[str, str],
    facts: dict[str, Any],
) -> str:
    # MLflow's progress bars make no sense in a worker's log.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # The fluent API, the only way to log a model, knows one server per process: this is the worker's own process.
    mlflow.set_tracking_uri(client.tracking_uri)
    mlflow.set_registry_uri(client.tracking_uri)
    with mlflow.start_run(run_id=run_id):
        info = mlflow.transformers.log_model(
            transformers_model={"model": model, "tokenizer": tokenizer},
            name="student",
            task="text-generation",
            signature=infer_signature([example[0]], [example[1]], params=GENERATION),
            input_example=([example[0]], GENERATION),
            pip_requirements=pinned_requirements(),
            metadata=facts,
        )
    return info.model_uri


def _version_of_run(client: mlflow.MlflowClient, run_id: str, name: str) -> ModelVersion | None:
    versions = client.search_model_versions(f"name = '{name}'")
    return next((version for version in versions if version.run_id == run_id), None)


def _new_version(
    client: mlflow.MlflowClient, run_id: str, name: str, uri: str, facts: dict[str, Any], description: str
) -> ModelVersion:
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {key: str(value) for key, value in facts.items()}
    return client.create_model_version(name, uri, run_id=run_id, tags=tags, description=description)
