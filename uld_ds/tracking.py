"""MLflow: one run per training run, created by the driver, written by rank 0, the same after a restart."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before mlflow is imported anywhere in the process: it reads this once.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from uld_ds.errors import UserError
from uld_ds.recipe import Recipe

PARAM_LIMIT = 6000
_RUN_TAG = "uld_ds.run_dir"


def tracking_uri(recipe: Recipe) -> str:
    """Where runs are recorded: the recipe's choice, MLFLOW_TRACKING_URI, or sqlite in ``run.storage``."""
    chosen = recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or f"sqlite:///{Path(recipe.run.storage).expanduser().resolve() / 'mlflow.db'}"


def open_client(uri: str, key: str = "tracking.uri") -> mlflow.MlflowClient:
    """A client that has been seen to work.

    Raises:
        UserError: nobody answers at ``uri``.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        with _impatient():
            client = mlflow.MlflowClient(uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            key, f"MLflow does not answer at {uri!r} ({reason})", "start the server or correct it"
        ) from error
    return client


@contextmanager
def _impatient() -> Iterator[None]:
    """Asks once: MLflow's own default keeps trying a dead address for minutes."""
    saved = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = saved or "1"
    try:
        yield
    finally:
        if saved is None:
            del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]


def open_run(client: mlflow.MlflowClient, recipe: Recipe, run_dir: Path) -> str:
    """The id of this training run's MLflow run, created now or reopened.

    The id lies in the run's folder, beside the checkpoints.
    """
    id_file = run_dir / "mlflow_run_id"
    if id_file.is_file():
        run_id = id_file.read_text().strip()
        try:
            client.get_run(run_id)
            client.update_run(run_id, status="RUNNING")
            return run_id
        except MlflowException as error:
            raise UserError(
                "tracking.uri",
                f"it has no run {run_id} ({id_file})",
                "point it at the server that this run began with",
            ) from error
    run = client.create_run(_experiment(client, recipe, run_dir), run_name=recipe.run.name)
    id_file.write_text(run.info.run_id)
    client.log_batch(run.info.run_id, params=_params(recipe), tags=[RunTag(_RUN_TAG, str(run_dir))])
    client.log_text(run.info.run_id, recipe.to_yaml(), "recipe.yaml")
    return run.info.run_id


def _experiment(client: mlflow.MlflowClient, recipe: Recipe, run_dir: Path) -> str:
    found = client.get_experiment_by_name(recipe.tracking.experiment)
    if found is not None:
        return found.experiment_id
    uri = tracking_uri(recipe)
    # Without a server, artifacts would land in the current folder's mlruns.
    local = uri.startswith("sqlite:")
    location = (run_dir.resolve().parent / "mlartifacts").as_uri() if local else None
    return client.create_experiment(recipe.tracking.experiment, artifact_location=location)


def _params(recipe: Recipe) -> list[Param]:
    flat = _flat(recipe.model_dump(mode="json"))
    return [Param(key, value[:PARAM_LIMIT]) for key, value in flat.items()][:100]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def log_metrics(client: mlflow.MlflowClient, run_id: str, step: int, metrics: Mapping[str, float]) -> None:
    """Writes metrics of one global step; those that are not a number are left out."""
    now = int(time.time() * 1000)
    known = {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
    client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in known.items()])
