"""Whether a gang fits on nodes, and the one line that says why not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster.placement import (
    Node,
    actor_resources,
    can_hold_actor,
    can_hold_one,
    check_fits,
    label_matches,
    worker_resources,
)
from uld_ds.errors import UserError
from uld_ds.recipe import ClusterSettings, parse_recipe
from uld_ds.recipe.actors import RolloutActorSettings


def node(address: str, labels: dict[str, str] | None = None, **resources: float) -> Node:
    return Node(address, resources, labels or {})


def problem(nodes: list[Node], *, on_gpu: bool = False, **settings: Any) -> str | None:
    actors = RolloutActorSettings(**settings.pop("actors")) if "actors" in settings else None
    try:
        check_fits(ClusterSettings(**settings), nodes, on_gpu=on_gpu, actors=actors)
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
    assert settings.ray_labels() == {"pool": "in(a,b)", "zone": "!in(x,y)", "kind": "c"}
    assert ClusterSettings().ray_labels() == {}


def test_actors_take_what_the_recipe_says() -> None:
    for actors, on_gpu, expected in [
        ({}, False, {"CPU": 1.0}),
        ({}, True, {"CPU": 1.0, "GPU": 1.0}),
        ({"gpus": 0}, True, {"CPU": 1.0}),
        ({"gpus": 0.5, "cpus": 3}, False, {"CPU": 3.0, "GPU": 0.5}),
    ]:
        assert actor_resources(RolloutActorSettings.model_validate(actors), on_gpu=on_gpu) == expected


def test_actors_need_room_beside_the_workers() -> None:
    assert problem(TWO, workers=3, actors={}) is None
    assert problem(TWO, workers=4, actors={}) == (
        "rollouts.actors: 1 beside 4 workers (1 CPU each) do not fit: there is room for 0; "
        "lower rollouts.actors.count, what each of them takes, or cluster.workers"
    )
    gpus = [node("a", CPU=16, GPU=8)]
    assert problem(gpus, on_gpu=True, workers=7, actors={}) is None
    assert problem(gpus, on_gpu=True, workers=6, actors={"count": 4, "gpus": 0.5}) is None
    text = problem(gpus, on_gpu=True, workers=8, actors={"count": 2})
    assert text is not None
    assert text.startswith("rollouts.actors: 2 beside 8 workers (1 CPU, 1 GPU each) do not fit: there is room for 0;")
    assert problem(gpus, on_gpu=True, workers=8, actors={"count": 8, "gpus": 0}) is None


def test_workers_make_room_for_actors_where_they_can() -> None:
    """An actor of 3 cores fits on the first node only, and then both workers must be on the second."""
    nodes = [node("a", CPU=3), node("b", CPU=2)]
    assert problem(nodes, workers=2, actors={"cpus": 3}) is None
    assert problem(nodes, workers=2, actors={"cpus": 3}, placement_strategy="STRICT_PACK") is None
    text = problem(nodes, workers=2, actors={"cpus": 3}, placement_strategy="STRICT_SPREAD")
    assert text is not None and "there is room for 0" in text
    assert problem(nodes, workers=2, actors={"cpus": 2}, placement_strategy="STRICT_SPREAD") is None
    text = problem(nodes, workers=3, actors={"count": 2}, placement_strategy="STRICT_PACK")
    assert text is None, "three workers on the first node, two actors on the second"
    text = problem(nodes, workers=3, actors={"count": 3}, placement_strategy="STRICT_PACK")
    assert text is not None and "there is room for 2" in text


@given(
    cpus=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    workers=st.integers(1, 4),
    worker=st.integers(1, 3),
    actor=st.integers(1, 3),
    strategy=st.sampled_from(["PACK", "STRICT_PACK", "STRICT_SPREAD"]),
)
def test_room_beside_workers_is_that_of_all_placements(
    cpus: list[int], workers: int, worker: int, actor: int, strategy: str
) -> None:
    """Against trying every way to place the workers."""
    allowed = {
        "PACK": lambda placed: True,
        "STRICT_PACK": lambda placed: sum(number > 0 for number in placed) == 1,
        "STRICT_SPREAD": lambda placed: max(placed) <= 1,
    }[strategy]
    best = max(
        (
            sum((have - number * worker) // actor for have, number in zip(cpus, placed, strict=True))
            for placed in itertools.product(range(workers + 1), repeat=len(cpus))
            if sum(placed) == workers and allowed(placed)
            and all(number * worker <= have for have, number in zip(cpus, placed, strict=True))
        ),
        default=None,
    )  # fmt: skip
    nodes = [node(str(number), CPU=have) for number, have in enumerate(cpus)]
    settings = {"workers": workers, "cpus_per_worker": worker, "placement_strategy": strategy}
    if best is None:
        assert problem(nodes, **settings) is not None
        return
    assert problem(nodes, **settings) is None
    if best:
        assert problem(nodes, **settings, actors={"count": best, "cpus": actor}) is None
    text = problem(nodes, **settings, actors={"count": best + 1, "cpus": actor})
    assert text is not None and f"there is room for {best};" in text


def test_nodes_that_may_get_an_actor() -> None:
    nodes = [node("a", {"pool": "x"}, CPU=1), node("b", {"pool": "x"}, CPU=4), node("c", {"pool": "y"}, CPU=4)]
    settings, actors = ClusterSettings(labels={"pool": "x"}, cpus_per_worker=1), RolloutActorSettings(cpus=2)
    assert [can_hold_actor(settings, item, actors, on_gpu=False) for item in nodes] == [False, True, False]
    assert not any(can_hold_actor(settings, item, None, on_gpu=False) for item in nodes)
