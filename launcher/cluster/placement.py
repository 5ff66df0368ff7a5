"""Whether a cluster can hold a worker group and actors beside it, node by node, and what it lacks when it cannot.

Ray itself waits for ever for a placement that can never be; a person wants to know at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uld_ds.errors import UserError
from uld_ds.recipe import ClusterSettings
from uld_ds.recipe.actors import EngineActorSettings

# Ray's own way to ask for a kind of accelerator: a node has one of this resource, a worker takes a sliver.
_ACCELERATOR = "accelerator_type:"
_SLIVER = 0.001
# Ray keeps resources in ten thousandths.
_EPSILON = 1e-4


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its address, Ray's resources (all of them, or those that are free) and labels."""

    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


def worker_resources(settings: ClusterSettings, *, on_gpu: bool) -> dict[str, float]:
    """Compute what one worker takes of Ray's resources."""
    resources = {"CPU": settings.cpus_per_worker, **settings.resources_per_worker}
    return {**resources, "GPU": 1.0} if on_gpu else resources


def check_fits(
    settings: ClusterSettings, nodes: Sequence[Node], *, on_gpu: bool, actors: EngineActorSettings | None = None
) -> None:
    """Check that the worker group can be placed on ``nodes``, and beside it the actors of an engine.

    Args:
        settings: the recipe's.
        nodes: all nodes.
        on_gpu: one GPU per worker.
        actors: the recipe's actors; None for a run without.

    Raises:
        UserError: it cannot; names the first thing that keeps it from being placed.
    """
    suitable = _with_accelerator(settings, _with_labels(settings, nodes))
    needed = worker_resources(settings, on_gpu=on_gpu)
    for name, amount in needed.items():
        _check_total(settings, suitable, name, amount)
    room = {node.address: _num_workers(node, needed) for node in suitable}
    strategy = settings.placement_strategy
    one = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
    if strategy == "STRICT_PACK" and max(room.values(), default=0) < settings.workers:
        raise UserError(
            "cluster.placement_strategy",
            f"STRICT_PACK puts all {settings.workers} workers ({one} each) on one node, the roomiest holds "
            f"{max(room.values(), default=0)}",
            "use PACK, or lower cluster.workers",
        )
    if strategy == "STRICT_SPREAD" and sum(held > 0 for held in room.values()) < settings.workers:
        raise UserError(
            "cluster.placement_strategy",
            f"STRICT_SPREAD puts {settings.workers} workers ({one} each) on as many nodes, the cluster has "
            f"{sum(held > 0 for held in room.values())} that can hold one",
            "use SPREAD, or lower cluster.workers",
        )
    if sum(room.values()) < settings.workers:
        held = ", ".join(f"{address} holds {number}" for address, number in room.items())
        raise UserError(
            "cluster.workers",
            f"{settings.workers} workers ({one} each) do not fit: {held}",
            "lower it, or what each of them takes",
        )
    if actors is not None:
        _check_beside(settings, suitable, needed, actors, actor_resources(actors, on_gpu=on_gpu))


def actor_resources(actors: EngineActorSettings, *, on_gpu: bool) -> dict[str, float]:
    """Compute what one actor takes of Ray's resources."""
    gpus = actors.gpus_each(on_gpu=on_gpu)
    return {"CPU": actors.cpus, "GPU": gpus} if gpus else {"CPU": actors.cpus}


def _check_beside(
    settings: ClusterSettings,
    nodes: Sequence[Node],
    worker: Mapping[str, float],
    actors: EngineActorSettings,
    actor: Mapping[str, float],
) -> None:
    """Check that there is a placement of the workers that leaves room for all actors."""
    most = _most_beside(settings, nodes, worker, actor)
    if most < actors.count:
        one = ", ".join(f"{amount:g} {name}" for name, amount in actor.items())
        raise UserError(
            f"{actors.section}.actors",
            f"{actors.count} beside {settings.workers} workers ({one} each) do not fit: there is room for {most}",
            f"lower {actors.section}.actors.count, what each of them takes, or cluster.workers",
        )


def _most_beside(
    settings: ClusterSettings, nodes: Sequence[Node], worker: Mapping[str, float], actor: Mapping[str, float]
) -> int:
    """Count the actors that find room beside the workers, at most, over all ways to place the workers."""
    wanted, strategy = settings.workers, settings.placement_strategy
    # most[n]: actors on the nodes so far with n workers on them; of what cannot be, less than none.
    most: list[float] = [0.0] + [-math.inf] * wanted
    for node in nodes:
        room = min(_num_workers(node, worker), wanted)
        choices = {"STRICT_PACK": {0, wanted}, "STRICT_SPREAD": {0, 1}}.get(strategy, set(range(room + 1)))
        beside = {number: _num_beside(node, number, worker, actor) for number in choices if number <= room}
        most = [
            max((most[total - number] + found for number, found in beside.items() if number <= total))
            for total in range(wanted + 1)
        ]
    return int(max(most[wanted], 0))


def _num_beside(node: Node, workers: int, worker: Mapping[str, float], actor: Mapping[str, float]) -> int:
    """Count the actors that a node can hold beside so many workers."""
    left = {name: amount - workers * worker.get(name, 0) for name, amount in node.resources.items()}
    return max(_num_workers(Node(node.address, left, node.labels), actor), 0)


def can_hold_one(settings: ClusterSettings, node: Node, *, on_gpu: bool) -> bool:
    """Tell whether a worker may be placed on this node."""
    return _can_hold(settings, node, worker_resources(settings, on_gpu=on_gpu))


def can_hold_actor(settings: ClusterSettings, node: Node, actors: EngineActorSettings | None, *, on_gpu: bool) -> bool:
    """Tell whether an actor may be placed on this node."""
    return actors is not None and _can_hold(settings, node, actor_resources(actors, on_gpu=on_gpu))


def _can_hold(settings: ClusterSettings, node: Node, needed: Mapping[str, float]) -> bool:
    labeled = all(label_matches(selector, node.labels.get(label)) for label, selector in settings.labels.items())
    kind = settings.accelerator_type
    accelerated = kind is None or node.resources.get(_ACCELERATOR + kind, 0) >= _SLIVER
    return labeled and accelerated and _num_workers(node, needed) > 0


def _num_workers(node: Node, needed: Mapping[str, float]) -> int:
    """Count the workers, or others that take what is ``needed``, that a node can hold."""
    return min(math.floor((node.resources.get(name, 0) + _EPSILON) / amount) for name, amount in needed.items())


def _check_total(settings: ClusterSettings, nodes: Sequence[Node], name: str, amount: float) -> None:
    total = sum(node.resources.get(name, 0) for node in nodes)
    needed = settings.workers * amount
    if total + _EPSILON >= needed:
        return
    if name == "GPU":
        problem = f"{settings.workers} workers need a GPU each, the cluster has {total:g}"
        raise UserError("cluster.workers", problem, "lower it")
    if name == "CPU":
        raise UserError(
            "cluster.workers",
            f"{settings.workers} workers x cluster.cpus_per_worker {amount:g} need {needed:g} CPUs, "
            f"the cluster has {total:g}",
            "lower one of them",
        )
    raise UserError(
        f"cluster.resources_per_worker.{name}",
        f"{settings.workers} workers x {amount:g} need {needed:g}, the cluster has {total:g}",
        "lower it, or start nodes that have more",
    )


def _with_labels(settings: ClusterSettings, nodes: Sequence[Node]) -> list[Node]:
    suitable = list(nodes)
    for label, selector in settings.labels.items():
        there = sorted({node.labels[label] for node in suitable if label in node.labels})
        suitable = [node for node in suitable if label_matches(selector, node.labels.get(label))]
        if not suitable:
            found = f"nodes have {', '.join(there)}" if there else "no node has that label"
            raise UserError(f"cluster.labels.{label}", f"no node is {selector!r}: {found}", "correct it")
    return suitable


def label_matches(selector: str, value: str | None) -> bool:
    """Tell whether a label's value matches one of Ray's label selectors.

    Selectors are ``x``, ``!x``, ``in(x, y)`` and ``!in(x, y)``; a negation also holds without the label.
    """
    negated = selector.startswith("!")
    text = selector.removeprefix("!")
    several = re.fullmatch(r"in\((.*)\)", text)
    values = [item.strip() for item in several[1].split(",")] if several else [text]
    return (value in values) != negated


def _with_accelerator(settings: ClusterSettings, nodes: Sequence[Node]) -> list[Node]:
    kind = settings.accelerator_type
    if kind is None:
        return list(nodes)
    suitable = [node for node in nodes if node.resources.get(_ACCELERATOR + kind, 0) >= _SLIVER]
    if not suitable:
        names = {name for node in nodes for name in node.resources if name.startswith(_ACCELERATOR)}
        found = ", ".join(sorted(name.removeprefix(_ACCELERATOR) for name in names)) or "none"
        raise UserError("cluster.accelerator_type", f"no node has {kind!r}, the cluster has {found}", "correct it")
    return suitable
