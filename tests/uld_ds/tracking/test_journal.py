"""Metrics wait on disk, arrive once, and never twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Metric

from uld_ds.tracking.delivery import Delivery, DeliveryThread
from uld_ds.tracking.journal import Journal, history, read_lines


class FakeServer:
    """Takes metrics, or is down. Points that are equal are one, as with MLflow's own store."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, int, int, float], int] = {}
        self.requests: list[int] = []
        self.down = False
        self.loses_answers = False

    def connect(self) -> Any:
        if self.down:
            raise ConnectionError("nobody there")
        return self

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        if self.down:
            raise ConnectionError("gone")
        assert run_id == "run"
        self.requests.append(len(metrics))
        for point in metrics:
            key = (point.key, point.step, point.timestamp, point.value)
            self.points[key] = self.points.get(key, 0) + 1
        if self.loses_answers:
            raise TimeoutError("no answer")

    def steps(self, name: str) -> list[int]:
        return [step for key, step, _, _ in self.points if key == name]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def delivery(folder: Path, server: FakeServer) -> Delivery:
    return Delivery(folder, "run", server.connect)


def test_every_step_arrives_in_order(tmp_path: Path, server: FakeServer) -> None:
    journal = Journal(tmp_path, "train")
    for step in (1, 2, 3):
        journal.write(step, {"loss": 4.0 - step, "nothing": float("nan"), "endless": float("inf")})
    assert delivery(tmp_path, server).deliver() == 3
    assert [(name, step, value) for name, step, _, value in server.points] == [
        ("loss", 1, 3.0),
        ("loss", 2, 2.0),
        ("loss", 3, 1.0),
    ]
    assert history(tmp_path) == {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)]}


def test_what_was_delivered_is_not_sent_again(tmp_path: Path, server: FakeServer) -> None:
    Journal(tmp_path, "train").write(1, {"loss": 1.0})
    assert delivery(tmp_path, server).deliver() == 1
    # A process of its own, as after a restart.
    assert delivery(tmp_path, server).deliver() == 0
    assert set(server.points.values()) == {1}


def test_repeated_steps_are_not_written_again(tmp_path: Path, server: FakeServer) -> None:
    """Interrupted at step 5 with a checkpoint of step 3; steps 4 and 5 are done again."""
    first = Journal(tmp_path, "train")
    for step in range(1, 6):
        first.write(step, {"loss": float(step), "seconds": 1.0})
        if step == 4:
            delivery(tmp_path, server).deliver()
    again = Journal(tmp_path, "train")
    assert again.last_step == 5
    for step in range(4, 8):
        again.write(step, {"loss": float(step), "seconds": 2.0})
    delivery(tmp_path, server).deliver()
    assert server.steps("loss") == [1, 2, 3, 4, 5, 6, 7]
    assert history(tmp_path)["seconds"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0), (7, 2.0)]


def test_new_names_of_a_repeated_step_are_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "train")
    journal.write(3, {"loss": 1.0})
    journal.write(3, {"loss": 1.0, "bits": 2.0})
    assert [line.metrics for line in read_lines(tmp_path / "train.jsonl")] == [{"loss": 1.0}, {"bits": 2.0}]


def test_a_torn_line_is_dropped_and_its_step_written_again(tmp_path: Path, server: FakeServer) -> None:
    journal = Journal(tmp_path, "train")
    journal.write(1, {"loss": 1.0})
    journal.write(2, {"loss": 2.0})
    file = tmp_path / "train.jsonl"
    os.truncate(file, file.stat().st_size - 5)
    assert delivery(tmp_path, server).deliver() == 1
    Journal(tmp_path, "train").write(2, {"loss": 2.0})
    assert delivery(tmp_path, server).deliver() == 1
    assert server.steps("loss") == [1, 2]


def test_an_answer_that_was_lost_makes_no_second_point(tmp_path: Path, server: FakeServer) -> None:
    journal = Journal(tmp_path, "train")
    journal.write(1, {"loss": 1.0})
    server.loses_answers = True
    with pytest.raises(TimeoutError):
        delivery(tmp_path, server).deliver()
    server.loses_answers = False
    assert delivery(tmp_path, server).drain(0)
    assert list(server.points.values()) == [2]  # sent twice, one point


def test_requests_stay_below_what_a_server_takes(tmp_path: Path, server: FakeServer) -> None:
    journal = Journal(tmp_path, "train")
    for step in range(400):
        journal.write(step, dict.fromkeys("abcdefg", 1.0))
    journal.write(400, {f"m{n}": 1.0 for n in range(2_500)})
    assert delivery(tmp_path, server).deliver() == 400 * 7 + 2_500
    assert max(server.requests) <= 1000
    assert len(server.requests) == 3 + 3
    assert len(server.points) == 400 * 7 + 2_500


def test_several_writers_are_delivered(tmp_path: Path, server: FakeServer) -> None:
    Journal(tmp_path, "train").write(1, {"loss": 1.0})
    Journal(tmp_path, "system-node").write(0, {"system/node/cpu": 50.0})
    delivery(tmp_path, server).deliver()
    assert sorted(name for name, *_ in server.points) == ["loss", "system/node/cpu"]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_outage_stops_nothing_and_loses_nothing(tmp_path: Path, server: FakeServer) -> None:
    journal = Journal(tmp_path, "train")
    thread = DeliveryThread(delivery(tmp_path, server), every=0.02)
    journal.write(1, {"loss": 1.0})
    wait_for(lambda: server.steps("loss") == [1])
    server.down = True
    begin = time.perf_counter()
    for step in range(2, 200):
        journal.write(step, {"loss": float(step)})
    assert time.perf_counter() - begin < 2
    server.down = False
    wait_for(lambda: len(server.points) == 199)
    journal.write(200, {"loss": 0.0})
    assert thread.close(5)
    assert server.steps("loss") == list(range(1, 201))


def test_closing_gives_up_in_time(tmp_path: Path, server: FakeServer) -> None:
    Journal(tmp_path, "train").write(1, {"loss": 1.0})
    server.down = True
    thread = DeliveryThread(delivery(tmp_path, server), every=0.02)
    begin = time.perf_counter()
    assert not thread.close(0.2)
    assert time.perf_counter() - begin < 3
    server.down = False
    assert delivery(tmp_path, server).drain(0)
    assert server.steps("loss") == [1]


def test_mlflow_takes_a_point_that_is_sent_twice_for_one(tmp_path: Path) -> None:
    """What delivery relies on, seen on MLflow itself."""
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.create_run(client.create_experiment("e", artifact_location=tmp_path.as_uri())).info.run_id
    Journal(tmp_path, "train").write(1, {"loss": 1.5, "bits": 2.0})
    for _ in range(2):
        assert Delivery(tmp_path, run, lambda: client).deliver() == 2
        (tmp_path / "train.delivered").unlink()
    assert [point.value for point in client.get_metric_history(run, "loss")] == [1.5]
