"""Which device workers get, given what a cluster has."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.cluster import connect
from launcher.cluster.connect import accelerator_for, connected
from launcher.cluster.placement import Node
from tests.helpers.ray_nodes import free_port
from uld_ds.errors import UserError
from uld_ds.recipe import ClusterSettings


@pytest.mark.parametrize(
    ("accelerator", "gpus", "expected"),
    [("auto", 0, False), ("auto", 1, False), ("auto", 2, True), ("cpu", 2, False), ("gpu", 2, True), ("gpu", 9, True)],
)
def test_gpus_when_there_is_one_for_each_worker(accelerator: Any, gpus: int, expected: bool) -> None:
    settings = ClusterSettings(workers=2, accelerator=accelerator)
    total = {"CPU": 2.0, "GPU": float(gpus)} if gpus else {"CPU": 2.0}
    assert accelerator_for(settings, [Node("a", total, {})]) is expected


def test_gpus_of_several_nodes_count_together() -> None:
    nodes = [Node("a", {"CPU": 8, "GPU": 1.0}, {}), Node("b", {"CPU": 8, "GPU": 3.0}, {})]
    assert accelerator_for(ClusterSettings(workers=4), nodes) is True


def test_what_a_cluster_lacks() -> None:
    with pytest.raises(UserError) as caught:
        accelerator_for(ClusterSettings(workers=4, accelerator="gpu"), [Node("a", {"CPU": 64, "GPU": 2.0}, {})])
    assert str(caught.value) == "cluster.workers: 4 workers need a GPU each, the cluster has 2; lower it"
    with pytest.raises(UserError) as caught:
        accelerator_for(ClusterSettings(workers=4, cpus_per_worker=1.5), [Node("a", {"CPU": 5.0}, {})])
    assert str(caught.value) == (
        "cluster.workers: 4 workers x cluster.cpus_per_worker 1.5 need 6 CPUs, the cluster has 5; lower one of them"
    )
    assert accelerator_for(ClusterSettings(workers=4, cpus_per_worker=1.5), [Node("a", {"CPU": 6.0}, {})]) is False


@pytest.mark.slow
def test_the_dashboard_listens_on_loopback(tmp_path: Path) -> None:
    """It runs what it is sent: nobody reaches it from another machine."""
    port = free_port()
    with connected(ClusterSettings(dashboard_port=port), tmp_path):
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        listening = {
            found.laddr.ip
            for process in psutil.Process().children(recursive=True)
            for found in process.net_connections(kind="inet")
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port
        }
    assert listening == {"127.0.0.1"}


def test_a_token_where_ray_cannot_keep_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # noted, so that it is as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    connect._have_token()
    assert "RAY_AUTH_TOKEN" not in os.environ, "Ray keeps one by itself"
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    connect._have_token()
    first = os.environ["RAY_AUTH_TOKEN"]
    assert len(first) == 64
    connect._have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == first
