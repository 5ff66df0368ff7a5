"""Whether a cluster can hold a worker group, node by node, and what it lacks when it cannot.

Ray itself waits for ever for a placement that can never be; a person wants to know at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uld_ds.errors import UserError
from uld_ds.recipe import ClusterSettings

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


def check_fits(settings: ClusterSettings, nodes: Sequence[Node], *, on_gpu: bool) -> None:
    """Check that the worker group can be placed on ``nodes``.

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


def can_hold_one(settings: ClusterSettings, node: Node, *, on_gpu: bool) -> bool:
    """Tell whether a worker may be placed on this node."""
    labeled = all(label_matches(selector, node.labels.get(label)) for label, selector in settings.labels.items())
    kind = settings.accelerator_type
    accelerated = kind is None or node.resources.get(_ACCELERATOR + kind, 0) >= _SLIVER
    return labeled and accelerated and _num_workers(node, worker_resources(settings, on_gpu=on_gpu)) > 0


def _num_workers(node: Node, needed: Mapping[str, float]) -> int:
    """Count the workers that a node can hold."""
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


def ray_selectors(settings: ClusterSettings) -> dict[str, str] | None:
    """Rewrite the recipe's label selectors as Ray must have them; None without any.

    Ray takes a space in ``in(x, y)`` for a part of the value: no node would match, and the worker group wait for ever.
    """
    return {label: re.sub(r"\s+", "", selector) for label, selector in settings.labels.items()} or None


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
