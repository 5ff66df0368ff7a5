"""Promotion of a registered student: both versions are measured on the same held-out rows, then the alias moves."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from launcher.drivers.evaluate import evaluate_model
from uld_ds.data.sources import load_rows
from uld_ds.data.statistics import content_digest
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, load_recipe
from uld_ds.registry.promotion import compared, promote, version_named, version_with_alias
from uld_ds.runs.folder import NAMES
from uld_ds.tracking import mlflow_runs

RECIPE_ARTIFACT = NAMES.recipe.name


def promote_version(
    name: str,
    version: str,
    *,
    alias: str,
    tolerance: float,
    recipe_file: Path | None,
    overrides: list[str],
    uri: str,
    forced: tuple[str, str] | None,
) -> dict[str, Any]:
    """Evaluate a version and the alias's holder, and move the alias if the version is no worse.

    Args:
        name: of the registered model.
        version: its number.
        alias: to move.
        tolerance: share by which a metric may be worse.
        recipe_file: whose ``data.eval`` and ``evaluation.metrics`` decide; default: of the candidate's own run.
        overrides: of that recipe.
        uri: of the MLflow server or database.
        forced: who forces it, and why.

    Raises:
        UserError: no such version, no held-out rows.
        RunError: it is worse.
    """
    client = mlflow_runs.open_client(uri, "MLFLOW_TRACKING_URI")
    candidate = version_named(client, name, version)
    incumbent = version_with_alias(client, name, alias)
    if incumbent is not None and str(incumbent.version) == version:
        raise UserError("VERSION", f"{name} version {version} is {alias!r} already", "promote another version")
    with tempfile.TemporaryDirectory(prefix="uld-ds-promote-") as aside:
        folder = Path(aside)
        judge = _recipe_of(client, candidate, folder, recipe_file, overrides)
        if judge.data.eval is None:
            raise UserError("data.eval", "is missing", "name held-out rows, e.g. with --recipe FILE")
        digest = content_digest(load_rows(judge.data.eval, "data.eval"))
        found = []
        for one in filter(None, (candidate, incumbent)):
            own = _measuring(_as_trained(client, one, judge, folder))
            with _student(client, one, folder) as place:
                output = folder / f"evaluation-{one.version}"
                found.append(evaluate_model(str(place), own, str(output)))
        scored = judge.evaluation.metrics is not None
        comparisons = compared(found[0], found[1] if incumbent is not None else None, scored=scored)
    return promote(
        client,
        candidate,
        incumbent,
        alias,
        comparisons,
        tolerance=tolerance,
        data_digest=digest,
        forced=forced,
    )


def _recipe_of(
    client: mlflow.MlflowClient, version: ModelVersion, folder: Path, file: Path | None, overrides: list[str]
) -> Recipe:
    if file is None:
        try:
            file = Path(client.download_artifacts(version.run_id or "", RECIPE_ARTIFACT, str(folder)))
        except Exception as error:  # whatever the artifact store says
            problem = f"the run of version {version.version} has no {RECIPE_ARTIFACT}"
            raise UserError("--recipe", problem, "name a recipe with the held-out rows") from error
    # Not this process's environment: it says nothing about a run of long ago.
    return load_recipe(file, overrides, environment={})


def _as_trained(client: mlflow.MlflowClient, version: ModelVersion, judge: Recipe, folder: Path) -> Recipe:
    """Combine the judge's rows and metrics with the way this version was trained to read."""
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        try:
            own = _recipe_of(client, version, Path(aside), None, [])
        except UserError:
            return judge
    return judge.model_copy(update={"student": own.student})


def _measuring(recipe: Recipe) -> Recipe:
    """Shorten generation to one token where no metric of answers waits for it."""
    if recipe.evaluation.metrics is not None:
        return recipe
    return recipe.model_copy(update={"generation": recipe.generation.model_copy(update={"max_new_tokens": 1})})


@contextlib.contextmanager
def _student(client: mlflow.MlflowClient, version: ModelVersion, folder: Path) -> Iterator[Path]:
    """Download a version's files as a Hugging Face directory, removed again on leaving."""
    source = client.get_model_version_download_uri(version.name, version.version)
    if source.startswith("models:/m-"):
        source = client.get_logged_model(source.removeprefix("models:/")).artifact_location
    repository: Any = get_artifact_repository(source, tracking_uri=client.tracking_uri)
    place = folder / f"version-{version.version}"
    place.mkdir()
    try:
        repository.download_artifacts("", str(place))
        for file in (place / "components" / "tokenizer").iterdir():
            os.replace(file, place / "model" / file.name)  # noqa: PTH105
        yield place / "model"
    finally:
        shutil.rmtree(place, ignore_errors=True)
