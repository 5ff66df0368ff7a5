"""Nodes with other libraries are named, with what differs."""

from __future__ import annotations

from launcher.cluster.versions import check_versions, differences, versions_here


def test_what_differs_is_named() -> None:
    here = {"uld-ds": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"}
    nodes = {
        "10.0.0.3": here | {"torch": "2.6.0"},
        "10.0.0.2": dict(here),
        "10.0.0.1": {"torch": "2.13.0", "ray": "2.59.0"},
    }
    assert differences(here, nodes) == [
        "10.0.0.1: uld-ds - (here 0.1.0), ray 2.59.0 (here 2.60.0)",
        "10.0.0.3: torch 2.6.0 (here 2.13.0)",
    ]


def test_this_environment_is_like_itself_and_one_node_is_not_asked() -> None:
    assert {"uld-ds", "python", "torch", "deepspeed", "ray"} <= set(versions_here())
    assert differences(versions_here(), {"here": versions_here()}) == []
    check_versions({"a": "127.0.0.1"})  # no cluster is needed
