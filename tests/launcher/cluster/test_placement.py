"""Whether a gang fits on nodes, and the one line that says why not."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.cluster.placement import Node, can_hold_one, check_fits, label_matches, ray_selectors, worker_resources
from uld_ds.errors import UserError
from uld_ds.recipe import ClusterSettings, parse_recipe


def node(address: str, labels: dict[str, str] | None = None, **resources: float) -> Node:
    return Node(address, resources, labels or {})


def problem(nodes: list[Node], *, on_gpu: bool = False, **settings: Any) -> str | None:
    try:
        check_fits(ClusterSettings(**settings), nodes, on_gpu=on_gpu)
    except UserError as error:
        return str(error)
    return None


TWO = [node("a", CPU=3), node("b", CPU=1)]


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD"])
def test_soft_strategies_need_room_somewhere(strategy: Any) -> None:
    assert problem(TWO, workers=4, placement_strategy=strategy) is None
    assert problem(TWO, workers=2, cpus_per_worker=2, placement_strategy=strategy) == (
        "cluster.workers: 2 workers (2 CPU each) do not fit: a holds 1, b holds 0; lower it, or what each of them takes"
    )


def test_one_node_must_hold_all_of_a_strict_pack() -> None:
    assert problem(TWO, workers=3, placement_strategy="STRICT_PACK") is None
    assert problem(TWO, workers=4, placement_strategy="STRICT_PACK") == (
        "cluster.placement_strategy: STRICT_PACK puts all 4 workers (1 CPU each) on one node, the roomiest holds 3; "
        "use PACK, or lower cluster.workers"
    )


def test_every_worker_of_a_strict_spread_needs_its_node() -> None:
    assert problem(TWO, workers=2, placement_strategy="STRICT_SPREAD") is None
    text = problem([*TWO, node("head", CPU=0)], workers=3, placement_strategy="STRICT_SPREAD")
    assert text == (
        "cluster.placement_strategy: STRICT_SPREAD puts 3 workers (1 CPU each) on as many nodes, the cluster has 2 "
        "that can hold one; use SPREAD, or lower cluster.workers"
    )


def test_gpus_and_cpus_must_be_on_the_same_node() -> None:
    apart = [node("a", CPU=8), node("b", CPU=0, GPU=8)]
    text = problem(apart, on_gpu=True, workers=2)
    assert text is not None and "2 workers (1 CPU, 1 GPU each) do not fit: a holds 0, b holds 0" in text
    assert problem([node("a", CPU=2, GPU=2)], on_gpu=True, workers=2) is None


def test_custom_resources() -> None:
    disks = [node("a", CPU=4, fast_disk=1), node("b", CPU=4)]
    assert problem(disks, workers=1, resources_per_worker={"fast_disk": 1.0}) is None
    assert problem(disks, workers=2, resources_per_worker={"fast_disk": 1.0}) == (
        "cluster.resources_per_worker.fast_disk: 2 workers x 1 need 2, the cluster has 1; "
        "lower it, or start nodes that have more"
    )
    settings = ClusterSettings(resources_per_worker={"fast_disk": 0.5}, cpus_per_worker=2)
    assert worker_resources(settings, on_gpu=True) == {"CPU": 2, "fast_disk": 0.5, "GPU": 1.0}


def test_fractions_add_up() -> None:
    """Ten workers of a tenth fit on one: floating point must not lose the last."""
    assert problem([node("a", CPU=1)], workers=10, cpus_per_worker=0.1) is None
    assert problem([node("a", CPU=0.3)], workers=3, cpus_per_worker=0.1) is None
    assert problem([node("a", CPU=1)], workers=11, cpus_per_worker=0.1) is not None


def test_labels_leave_nodes_out() -> None:
    nodes = [node("a", {"pool": "big"}, CPU=2), node("b", {"pool": "small"}, CPU=2), node("c", CPU=2)]
    assert problem(nodes, workers=2, labels={"pool": "big"}) is None
    assert problem(nodes, workers=3, labels={"pool": "big"}) == (
        "cluster.workers: 3 workers x cluster.cpus_per_worker 1 need 3 CPUs, the cluster has 2; lower one of them"
    )
    assert problem(nodes, workers=4, labels={"pool": "in(big, small)"}) is None
    assert problem(nodes, workers=1, labels={"pool": "huge"}) == (
        "cluster.labels.pool: no node is 'huge': nodes have big, small; correct it"
    )
    assert problem(nodes, workers=1, labels={"zone": "x"}) == (
        "cluster.labels.zone: no node is 'x': no node has that label; correct it"
    )
    settings = ClusterSettings(labels={"pool": "!big"})
    assert [can_hold_one(settings, item, on_gpu=False) for item in nodes] == [False, True, True]


@pytest.mark.parametrize(
    ("selector", "matching"),
    [
        ("x", {"x"}),
        ("!x", {"y", "z", None}),
        ("in(x, y)", {"x", "y"}),
        ("in(x)", {"x"}),
        ("!in(x, y)", {"z", None}),
    ],
)
def test_label_selectors(selector: str, matching: set[str | None]) -> None:
    assert {value for value in ("x", "y", "z", None) if label_matches(selector, value)} == matching


def test_accelerator_type() -> None:
    nodes = [
        node("a", CPU=8, GPU=8, **{"accelerator_type:H100": 1.0}),
        node("b", CPU=8, GPU=8, **{"accelerator_type:A100": 1.0}),
    ]
    assert problem(nodes, on_gpu=True, workers=8, accelerator_type="H100") is None
    assert problem(nodes, on_gpu=True, workers=9, accelerator_type="H100") == (
        "cluster.workers: 9 workers x cluster.cpus_per_worker 1 need 9 CPUs, the cluster has 8; lower one of them"
    )
    assert problem(nodes, on_gpu=True, workers=1, accelerator_type="B200") == (
        "cluster.accelerator_type: no node has 'B200', the cluster has A100, H100; correct it"
    )
    settings = ClusterSettings(accelerator_type="A100")
    assert [can_hold_one(settings, item, on_gpu=True) for item in nodes] == [False, True]


def test_cpus_and_gpus_have_keys_of_their_own(tiny_recipe: dict[str, Any]) -> None:
    for name, key in {"CPU": "cpus_per_worker", "GPU": "accelerator"}.items():
        tiny_recipe["cluster"] = {"workers": 2, "resources_per_worker": {name: 1.0}}
        with pytest.raises(UserError, match=rf"cluster.resources_per_worker.{name} is set by cluster.{key}"):
            parse_recipe(tiny_recipe)


def test_ray_gets_selectors_without_spaces() -> None:
    """Ray waits for ever for a node whose label is " b"."""
    settings = ClusterSettings(labels={"pool": "in(a, b)", "zone": "! in( x ,y )", "kind": "c"})
    assert ray_selectors(settings) == {"pool": "in(a,b)", "zone": "!in(x,y)", "kind": "c"}
    assert ray_selectors(ClusterSettings()) is None
