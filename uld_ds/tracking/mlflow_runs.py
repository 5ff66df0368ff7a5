"""MLflow runs: one per training run, created by the driver, written by rank 0, the same after a restart.

Credentials come from the environment (MLFLOW_TRACKING_USERNAME and alike, or a URI that holds them) and are shown
nowhere. Metrics do not pass through here: see journal.py.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before mlflow is imported anywhere in the process: it reads this once.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A command's standard output is the command's own.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow.entities import LifecycleStage, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import URL, make_url

from uld_ds.errors import RunError, UserError, one_line
from uld_ds.recipe import Recipe
from uld_ds.runs.folder import RunFolder
from uld_ds.utils.files import in_home, write_whole
from uld_ds.utils.redaction import Redactor, redacted

log = logging.getLogger(__name__)

PARAM_LIMIT = 6000
_PARAMS_PER_REQUEST = 100
_KEY_LIMIT = 250
_IDENTITY_TAG = "uld_ds.identity"
_RUN_TAG = "uld_ds.run_dir"
# What a run that was deleted, by itself or with its experiment, answers to any change.
_DELETED = "INVALID_PARAMETER_VALUE"
_GONE = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}


def tracking_uri(recipe: Recipe) -> str:
    """Choose where runs are recorded: ``tracking.uri``, else MLFLOW_TRACKING_URI, else sqlite in ``run.storage``."""
    chosen = recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or sqlite_uri(in_home(recipe.run.storage).resolve() / "mlflow.db", "run.storage")


def sqlite_uri(file: Path, key: str) -> str:
    """Write a data base's file as an address that leads to it, whatever is in its name.

    Args:
        file: its absolute path.
        key: what names it, for the error.

    Raises:
        UserError: no address does.
    """
    plain = f"sqlite:///{file}"
    # SQLAlchemy reads %20 as a space and a question mark as the beginning of options. 2.1 can write them, too. (MLflow
    # 3.17 then makes an empty folder besides, by the address as it is written.)
    for uri in (plain, URL.create("sqlite", database=str(file)).render_as_string()):
        if _file_of(uri) == file:
            return uri
    problem = f"{str(file.parent)!r} has a character in it that an address of sqlite cannot have"
    raise UserError(key, problem, "name another folder, or set tracking.uri")


def _file_of(uri: str) -> Path | None:
    """Find the file that an address of sqlite leads to; None if it is another address, or has options."""
    if not uri.startswith("sqlite:///"):
        return None
    url = make_url(uri)
    return Path(url.database) if url.database and not url.query else None


def shown(uri: str) -> str:
    """Hide the secrets of an address, e.g. a password, so that it may be printed."""
    return redacted(uri)


def client_for(uri: str) -> mlflow.MlflowClient:
    """Make an MLflow client without trying it; its failures are known in seconds."""
    # MLflow's own default keeps trying a dead address for minutes; whoever must not give up tries again here.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    return mlflow.MlflowClient(uri, registry_uri=uri)


def open_client(uri: str, key: str = "tracking.uri") -> mlflow.MlflowClient:
    """Make an MLflow client and see that its server answers.

    Args:
        uri: MLflow's tracking URI.
        key: the recipe's key that holds it, for the error.

    Raises:
        UserError: nobody answers at ``uri``.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    file = _file_of(uri)
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        with _impatient():
            client = mlflow.MlflowClient(uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:
        # Hidden first: half of a secret is not known for one.
        reason = one_line(redacted(one_line(error, None)))
        raise UserError(
            key, f"MLflow does not answer at {shown(uri)!r} ({reason})", "start the server or correct it"
        ) from error
    return client


def client_of_run(uri: str, run_dir: Path) -> mlflow.MlflowClient:
    """Make an MLflow client for a run; one that has begun goes on while its server is away.

    Raises:
        UserError: nobody answers, and the run has yet to begin.
    """
    try:
        return open_client(uri)
    except UserError as error:
        if not RunFolder(run_dir).run_id.is_file():
            raise
        log.warning("%s; the run goes on, its metrics wait on disk", str(error).partition(";")[0])
        return client_for(uri)


@contextmanager
def _impatient() -> Iterator[None]:
    """Have MLflow ask a server once: its own default keeps trying a dead address for minutes."""
    saved = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = saved or "1"
    try:
        yield
    finally:
        if saved is None:
            del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]


def open_run(client: mlflow.MlflowClient, recipe: Recipe, run_dir: Path) -> str:
    """Create or reopen this training run's MLflow run, and return its id.

    The id lies in the run's folder, beside the checkpoints. A reopened run is RUNNING again, as soon as its server
    hears of it.

    Raises:
        UserError: the server does not know a run that has begun, or it or its experiment was deleted.
        RunError: the server takes no new run.
    """
    id_file = RunFolder(run_dir).run_id
    if id_file.is_file():
        return _reopened(client, id_file)
    try:
        run_id = _created(client, recipe, run_dir)
    except MlflowException as error:  # what its server allows, and whether it answers now, is its own affair
        reason = one_line(redacted(one_line(error, None)))
        raise RunError(f"MLflow does not take a run {recipe.run.name!r} ({reason})") from error
    write_whole(id_file, run_id, sync=True)
    return run_id


def _created(client: mlflow.MlflowClient, recipe: Recipe, run_dir: Path) -> str:
    experiment = _experiment(client, recipe, run_dir)
    # Written first: a creation that was interrupted before its id was known is found by it. Both are on the disk when
    # the server hears of the run: without them it would be recorded twice.
    identity_file = RunFolder(run_dir).run_identity
    known = identity_file.is_file()
    identity = identity_file.read_text(encoding="utf-8") if known else uuid.uuid4().hex
    write_whole(identity_file, identity, sync=True)
    run_id = _run_of(client, experiment, identity) if known else None
    if run_id is None:
        tags = {_RUN_TAG: str(run_dir), _IDENTITY_TAG: identity}
        run_id = client.create_run(experiment, tags=tags, run_name=recipe.run.name).info.run_id
    return run_id


def check_not_deleted(client: mlflow.MlflowClient, recipe: Recipe, run_dir: Path) -> None:
    """Check that MLflow takes what this training run will record, before anything is started for it.

    Raises:
        UserError: the run of one that has begun was deleted there, or the experiment of one that has not.
    """
    id_file = RunFolder(run_dir).run_id
    with _impatient():
        try:
            if not id_file.is_file():
                _experiment_id(client, recipe)
            elif client.get_run(_id_in(id_file)).info.lifecycle_stage == LifecycleStage.DELETED:
                raise _deleted(id_file)
        except MlflowException:
            return  # open_run says what to make of it


def _id_in(id_file: Path) -> str:
    return id_file.read_text(encoding="utf-8").strip()


def _deleted(id_file: Path) -> UserError:
    run_id = _id_in(id_file)
    restore = f"mlflow runs restore --run-id {run_id}, and its experiment, if that was deleted"
    problem = f"run {run_id} of {str(id_file.parent)!r} was deleted in MLflow"
    return UserError("run.name", problem, f"take another name, or restore it: {restore}")


def _reopened(client: mlflow.MlflowClient, id_file: Path) -> str:
    run_id = _id_in(id_file)
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code == _DELETED:
            raise _deleted(id_file) from error
        if error.error_code not in _GONE:
            log.warning("MLflow does not answer: run %s goes on without it for now", run_id)
            return run_id
        raise UserError(
            "tracking.uri",
            f"it has no run {run_id} ({id_file})",
            "point it at the server that this run began with",
        ) from error
    return run_id


def _run_of(client: mlflow.MlflowClient, experiment: str, identity: str) -> str | None:
    found = client.search_runs([experiment], f"tags.`{_IDENTITY_TAG}` = '{identity}'", max_results=1)
    return found[0].info.run_id if found else None


def log_params(client: mlflow.MlflowClient, run_id: str, tree: Mapping[str, Any]) -> None:
    """Log every leaf of a tree as a param, without secrets; too long a value is cut (artifacts hold it whole)."""
    params = [Param(_param_key(key), _cut(value)) for key, value in _flat(Redactor().tree(tree)).items()]
    for first in range(0, len(params), _PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params[first : first + _PARAMS_PER_REQUEST])


def _param_key(key: str) -> str:
    # What MLflow takes: file names, in effect.
    return re.sub(r"[^\w.\- /]", "_", key)[:_KEY_LIMIT]


def _cut(value: str) -> str:
    return value if len(value) <= PARAM_LIMIT else value[: PARAM_LIMIT - 1] + "…"


def log_tags(client: mlflow.MlflowClient, run_id: str, tags: Mapping[str, Any]) -> None:
    """Set tags of an MLflow run, without secrets."""
    redactor = Redactor()
    client.log_batch(run_id, tags=[RunTag(key, redactor.text(str(value))[:5000]) for key, value in tags.items()])


def _experiment(client: mlflow.MlflowClient, recipe: Recipe, run_dir: Path) -> str:
    known = _experiment_id(client, recipe)
    if known is not None:
        return known
    uri = tracking_uri(recipe)
    # Without a server, artifacts would land in the current folder's mlruns.
    local = uri.startswith("sqlite:")
    location = (run_dir.resolve().parent / "mlartifacts").as_uri() if local else None
    return client.create_experiment(recipe.tracking.experiment, artifact_location=location)


def _experiment_id(client: mlflow.MlflowClient, recipe: Recipe) -> str | None:
    """Find the recipe's experiment; None if it is still to be made.

    Raises:
        UserError: it was deleted.
    """
    found = client.get_experiment_by_name(recipe.tracking.experiment)
    if found is None or found.lifecycle_stage != LifecycleStage.DELETED:
        return None if found is None else found.experiment_id
    raise UserError(
        "tracking.experiment",
        f"{found.name!r} was deleted in MLflow",
        f"name another, or restore it: mlflow experiments restore --experiment-id {found.experiment_id}",
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
