"""The links between a run, the model it logged, and that model's version in the registry, each made once."""

from __future__ import annotations

import json

import mlflow
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

LOGGED_NAME = "student"
_GONE = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}


def logged_students(client: mlflow.MlflowClient, run_id: str) -> list[LoggedModel]:
    """List the students that a run has logged, finished or not; there is more than one only if others wrote them."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    return [logged for logged in found if logged.source_run_id == run_id and logged.name == LOGGED_NAME]


def is_ready(logged: LoggedModel) -> bool:
    """Tell whether a logged model's files are all there."""
    return str(logged.status) == "READY"


def link_output(client: mlflow.MlflowClient, run_id: str, logged: LoggedModel) -> None:
    """Link a run to the model that it logged, if it is not linked yet; a deleted run takes no links."""
    run = client.get_run(run_id)
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        return
    # MLflow 3.17 refuses the same output a second time (IntegrityError).
    outputs = run.outputs
    if outputs is None or logged.model_id not in {output.model_id for output in outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])


def link_version(client: mlflow.MlflowClient, logged: LoggedModel, version: ModelVersion) -> None:
    """Link a logged model to its version, if it is not linked yet, as ``mlflow.register_model`` does."""
    # In MLflow 3.17 a server makes this link when it creates a version of a model_id; a database without a server
    # drops the id, and nothing is linked.
    known = client.get_logged_model(logged.model_id).tags.get(MLFLOW_MODEL_VERSIONS)
    versions = json.loads(known) if known else []
    if (version.name, str(version.version)) not in {(one["name"], str(one["version"])) for one in versions}:
        versions.append({"name": version.name, "version": int(version.version)})
        client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(versions)})


def link_all(client: mlflow.MlflowClient, version: ModelVersion) -> None:
    """Make what links are missing between a version, its logged model and its run; none where one of them is gone."""
    if not version.run_id:
        return
    try:
        ready = [logged for logged in logged_students(client, version.run_id) if is_ready(logged)]
    except MlflowException as error:
        if error.error_code not in _GONE:
            raise
        return
    for logged in ready[:1]:
        link_output(client, version.run_id, logged)
        link_version(client, logged, version)
