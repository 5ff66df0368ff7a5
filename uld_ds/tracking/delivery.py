"""Delivery of the journals' metrics to MLflow, whenever it answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
from mlflow.entities import Metric

from uld_ds.errors import one_line
from uld_ds.tracking.journal import _SUFFIX, Line, _sync, log
from uld_ds.utils.files import write_whole

_DELIVERED = ".delivered"
# The most that MLflow takes in one request.
METRICS_PER_REQUEST = 1000
_LONGEST_PAUSE = 30.0


class Delivery:
    """The way of metrics from a folder of journals to an MLflow run.

    Args:
        folder: folder of the journals.
        run_id: id of the MLflow run.
        connect: makes a client; called again after a failure.
    """

    def __init__(self, folder: Path, run_id: str, connect: Callable[[], mlflow.MlflowClient]) -> None:
        self._folder = folder
        self._run_id = run_id
        self._connect = connect
        self._client: mlflow.MlflowClient | None = None

    def deliver(self) -> int:
        """Send all lines that are new, and return the number of metrics sent. Raises whatever sending raises."""
        try:
            return sum(self._deliver_file(file) for file in sorted(self._folder.glob(f"*{_SUFFIX}")))
        except Exception:
            self._client = None
            raise

    def drain(self, patience: float) -> bool:
        """Try for ``patience`` seconds to deliver all, and return whether that was possible."""
        end = time.monotonic() + patience
        pause = 0.5
        while True:
            try:
                self.deliver()
                return True
            except Exception as error:  # whatever is wrong with a server, it may pass
                left = end - time.monotonic()
                if left <= 0:
                    log.warning("metrics were not delivered (%s); they are in %s", one_line(error), self._folder)
                    return False
                time.sleep(min(pause, left))
                pause = min(2 * pause, 5.0)

    def _deliver_file(self, file: Path) -> int:
        note = file.with_suffix(_DELIVERED)
        position = _position(note)
        if file.stat().st_size <= position:
            return 0
        _sync(file)
        sent = 0
        for points, end in _batches(file, position):
            self._send(points)
            # Not synchronized, every second as it is: what is sent twice counts once.
            write_whole(note, str(end))
            sent += len(points)
        return sent

    def _send(self, points: list[Metric]) -> None:
        if self._client is None:
            self._client = self._connect()
        for first in range(0, len(points), METRICS_PER_REQUEST):
            self._client.log_batch(self._run_id, metrics=points[first : first + METRICS_PER_REQUEST])


def _batches(file: Path, position: int) -> Iterator[tuple[list[Metric], int]]:
    """Yield the lines' points from a position on, as many as fit into a request, and where those lines end."""
    batch: list[Metric] = []
    with file.open("rb") as stream:
        stream.seek(position)
        for data in stream:
            if not data.endswith(b"\n"):  # it is being written
                break
            line = Line(**json.loads(data))
            if batch and len(batch) + len(line.metrics) > METRICS_PER_REQUEST:
                yield batch, position
                batch = []
            batch.extend(Metric(name, value, line.time, line.step) for name, value in line.metrics.items())
            position += len(data)
    if batch:
        yield batch, position


def _position(note: Path) -> int:
    with suppress(FileNotFoundError, ValueError):
        return int(note.read_text(encoding="utf-8"))
    return 0


class DeliveryThread:
    """A background thread of deliveries; an outage makes it slower, never louder, and never stops it.

    Args:
        delivery: what it calls.
        every: seconds between two calls while the server answers.
    """

    def __init__(self, delivery: Delivery, *, every: float = 1.0) -> None:
        self._delivery = delivery
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-delivery", daemon=True)
        self._thread.start()

    def close(self, patience: float) -> bool:
        """Stop the thread and deliver what is left, and return whether all was delivered.

        Args:
            patience: most seconds to wait for what is under way, and then again for the rest.
        """
        self._stop.set()
        self._thread.join(timeout=patience)
        return not self._thread.is_alive() and self._delivery.drain(patience)

    def _run(self) -> None:
        pause = self._every
        while not self._stop.wait(pause):
            try:
                self._delivery.deliver()
                if pause > self._every:
                    log.info("MLflow answers again: metrics are delivered")
                pause = self._every
            except Exception as error:  # whatever is wrong with a server, training goes on
                if pause == self._every:
                    log.warning("MLflow does not take metrics (%s): they wait on disk", one_line(error))
                pause = min(2 * pause, _LONGEST_PAUSE)
