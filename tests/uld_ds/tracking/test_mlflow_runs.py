"""Where runs are recorded, whatever the folder is called, and what was deleted there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.recipe_trees import tree_with
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.tracking import mlflow_runs

NAMES = ["runs", "with space", "ü", "a%20b", "50%", "q?x", "a?mode=ro", "x#y", "c:d@e", "p&q", "per%2Fcent"]


def recipe(storage: Path, **changes: Any) -> Recipe:
    return parse_recipe(tree_with(run__storage=str(storage), **changes))


@pytest.mark.parametrize("name", NAMES)
def test_the_address_of_the_default_database_leads_to_it(tmp_path: Path, name: str) -> None:
    uri = mlflow_runs.tracking_uri(recipe(tmp_path / name))
    assert mlflow_runs._file_of(uri) == tmp_path / name / "mlflow.db"
    if name in ("runs", "with space", "ü", "50%", "x#y", "c:d@e", "p&q"):  # as in runs that are there already
        assert uri == f"sqlite:///{tmp_path}/{name}/mlflow.db"


def test_a_database_in_a_folder_with_odd_characters(tmp_path: Path) -> None:
    """And what was deleted there."""
    chosen = recipe(tmp_path / "a%20b?c")
    run_dir = tmp_path / "a%20b?c" / "a"
    client = mlflow_runs.open_client(mlflow_runs.tracking_uri(chosen))
    run_dir.mkdir()
    run_id = mlflow_runs.open_run(client, chosen, run_dir)
    client.log_text(run_id, "said", "x.txt")
    assert not [place for place in tmp_path.rglob("*.db") if place.parent != run_dir.parent]
    assert {entry.name for entry in run_dir.parent.iterdir()} == {"a", "mlflow.db", "mlartifacts"}
    assert Path(client.download_artifacts(run_id, "x.txt", str(tmp_path))).read_text() == "said"

    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(UserError) as caught:
        mlflow_runs.open_run(client, chosen, tmp_path / "b")
    with pytest.raises(UserError, match=re.escape(str(caught.value))):
        mlflow_runs.check_not_deleted(client, chosen, tmp_path / "b")
    assert str(caught.value) == (
        "tracking.experiment: 'uld-ds' was deleted in MLflow; name another, or restore it: "
        f"mlflow experiments restore --experiment-id {experiment}"
    )
    with pytest.raises(UserError) as caught:
        mlflow_runs.open_run(client, chosen, run_dir)
    with pytest.raises(UserError, match=re.escape(str(caught.value))):
        mlflow_runs.check_not_deleted(client, chosen, run_dir)
    assert str(caught.value) == (
        f"run.name: run {run_id} of '{run_dir}' was deleted in MLflow; take another name, or restore it: "
        f"mlflow runs restore --run-id {run_id}, and its experiment, if that was deleted"
    )
    client.restore_experiment(experiment)
    for place in (run_dir, tmp_path / "b"):
        mlflow_runs.check_not_deleted(client, chosen, place)
    assert mlflow_runs.open_run(client, chosen, run_dir) == run_id
