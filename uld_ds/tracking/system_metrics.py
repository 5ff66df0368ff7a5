"""System metrics of each node (processors, memory, disk, network) by MLflow's own monitor, into a journal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from uld_ds.tracking.journal import Journal

log = logging.getLogger(__name__)


class NodeMonitor(SystemMetricsMonitor):
    """A monitor that samples one node onto disk, so that an outage of the server costs nothing.

    The step of a sample is its number, which continues that of an earlier attempt of the run.

    Args:
        journals: folder of the run's journals.
        run_id: id of the MLflow run.
        tracking_uri: address of MLflow.
        node: tells the nodes of a run apart, e.g. ``node-0``.
        every: seconds between samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL overrides it.
    """

    def __init__(self, journals: Path, run_id: str, tracking_uri: str, *, node: str, every: float) -> None:
        super().__init__(run_id, sampling_interval=every, node_id=node, tracking_uri=tracking_uri)
        self._journal = Journal(journals, f"system-{node}")
        self._logging_step = self._journal.last_step + 1

    def monitor(self) -> None:
        """Sample until ``finish`` is called: the thread's loop.

        MLflow's own asks the server before each sample and ends when it does not answer.
        """
        try:
            while not self._shutdown_event.is_set():
                self.collect_metrics()
                self._shutdown_event.wait(self.sampling_interval)
                self.publish_metrics(self.aggregate_metrics())
        except Exception as error:  # a sensor or a disk that fails is no reason to stop training
            log.warning("no more system metrics of this node: %s", error)

    def publish_metrics(self, metrics: dict[str, Any]) -> None:
        """Write one sample to the journal."""
        self._journal.write(
            self._logging_step, {f"{self._metrics_prefix}{self.node_id}/{name}": v for name, v in metrics.items()}
        )
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()

    def finish(self) -> None:
        """Stop sampling; the last sample is on disk when this returns."""
        self._shutdown_event.set()
        if self._process is not None:
            self._process.join()
            self._process = None
