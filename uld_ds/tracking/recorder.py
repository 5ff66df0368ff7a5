"""The recorder of a run's metrics, on the first rank: on disk at once, at MLflow when it answers, among Ray's own."""

from __future__ import annotations

from collections.abc import Mapping

import mlflow

from uld_ds.errors import RunError
from uld_ds.runs.job import Job
from uld_ds.tracking import mlflow_runs
from uld_ds.tracking.delivery import Delivery, DeliveryThread
from uld_ds.tracking.journal import Journal
from uld_ds.tracking.ray_metrics import RayGauges


class Recorder:
    """A recorder of the metrics of global steps. Nothing here waits for a server but ``close``.

    Args:
        job: the run.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._journal = Journal(job.folder.metrics, "train")
        self._gauges = RayGauges(job.recipe.run.name)
        self._thread = DeliveryThread(
            Delivery(job.folder.metrics, job.run_id, lambda: mlflow_runs.client_for(job.tracking_uri))
        )

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of one global step; steps that an earlier attempt recorded stay as they are."""
        self._journal.write(step, metrics)
        self._gauges.set(step, metrics)

    def sync(self) -> None:
        """Wait until all metrics are on the disk: before a checkpoint, behind which no step is computed again."""
        self._journal.sync()

    def close(self) -> mlflow.MlflowClient:
        """Wait until everything is delivered, and return a client for what remains to be done.

        Raises:
            RunError: the server did not answer for ``tracking.patience`` seconds.
        """
        patience = self._job.recipe.tracking.patience
        if not self._thread.close(patience):
            raise RunError(
                f"the student is trained, but MLflow at {mlflow_runs.shown(self._job.tracking_uri)} has not answered "
                f"for {patience:g} s (tracking.patience): run the same command again when it does"
            )
        return mlflow_runs.client_for(self._job.tracking_uri)
