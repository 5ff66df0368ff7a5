"""The lineage of a registered student: version, run, teacher, store, data, recipe, code."""

from __future__ import annotations

import json
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from uld_ds.errors import UserError
from uld_ds.registry.promotion import version_named

# Link of the chain to its fields: where they stand in a version's tags.
_LINKS = {
    "teacher": {
        "model": "teacher",
        "revision": "teacher_revision",
        "digest": "teacher_digest",
        "tokenizer_digest": "teacher_tokenizer_digest",
    },
    "store": {"place": "teacher_store", "digest": "teacher_store_digest"},
    "student_base": {
        "model": "student",
        "revision": "student_revision",
        "tokenizer_digest": "student_tokenizer_digest",
    },
    "data": {"digest": "data_digest", "held_out_digest": "eval_data_digest"},
    "recipe": {"digest": "recipe_digest"},
    "code": {"revision": "code_revision", "libraries": "libraries"},
    "results": {
        "bits_per_byte_before": "bits_per_byte_before",
        "bits_per_byte_after": "bits_per_byte_after",
        "bits_per_byte_teacher": "bits_per_byte_teacher",
        "alignment_rate": "alignment_rate",
    },
}


def lineage(client: mlflow.MlflowClient, name: str, version: str | None, alias: str | None) -> dict[str, Any]:
    """Trace a version's lineage, as plain values; links that it does not have are None.

    Args:
        client: client of the registry.
        name: name of the registered model.
        version: number of the version; needed where ``alias`` is None.
        alias: alias of the version, which counts before ``version``.

    Raises:
        UserError: no such model, version or alias.
    """
    found = _with_alias(client, name, alias) if alias is not None else version_named(client, name, str(version))
    tags = found.tags
    chain: dict[str, Any] = {
        "student": {"name": found.name, "version": str(found.version), "aliases": list(found.aliases)},
        "run": _run(client, found.run_id),
    }
    for link, fields in _LINKS.items():
        values = {field: tags[tag] for field, tag in fields.items() if tag in tags}
        chain[link] = values or None
    if "teachers" in tags:
        chain["teacher"] = {**(chain["teacher"] or {}), **_teachers(tags["teachers"])}
    if chain["run"] is not None:
        for name, dataset in chain["run"].pop("datasets").items():
            chain["data"] = {**(chain["data"] or {}), name: dataset}
    return chain


def _teachers(tag: str) -> dict[str, Any]:
    """Read the facts of several teachers from their tag, by their names; a tag that was cut is told as it is."""
    try:
        return dict(json.loads(tag))
    except ValueError:
        return {"teachers": tag}


def _with_alias(client: mlflow.MlflowClient, name: str, alias: str) -> ModelVersion:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        problem = f"no version of {name!r} has the alias {alias!r}"
        raise UserError("NAME@ALIAS", problem, "correct it, or MLFLOW_TRACKING_URI") from error


def _run(client: mlflow.MlflowClient, run_id: str | None) -> dict[str, Any] | None:
    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException:  # it was deleted; the version's tags still tell the rest
        return {"id": run_id, "name": None, "status": "deleted", "datasets": {}}
    datasets = {
        next((tag.value for tag in item.tags if tag.key == "mlflow.data.context"), item.dataset.name): {
            "source": item.dataset.source,
            "digest": item.dataset.digest,
        }
        for item in (run.inputs.dataset_inputs if run.inputs is not None else [])
    }
    return {"id": run_id, "name": run.info.run_name, "status": run.info.status, "datasets": datasets}
