"""Small questions to every node of the connected cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from uld_ds.errors import RunError, message_lines, one_line

T = TypeVar("T")

_SECONDS = 120.0


def ask_nodes(question: Callable[..., T], nodes: Mapping[str, str], *arguments: object) -> dict[str, T]:
    """Call ``question(*arguments)`` on each node and collect what it returns.

    Args:
        question: importable there.
        nodes: node id of Ray -> address.
        arguments: plain values.

    Raises:
        RunError: a node does not answer, or cannot run this program.
    """
    task = ray.remote(question)
    asked = {
        node: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(*arguments)
        for node in nodes
    }
    done, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_SECONDS)
    if late:
        silent = ", ".join(nodes[node] for node, answer in asked.items() if answer not in done)
        raise RunError(f"no answer within {_SECONDS:.0f} s from {silent}: is Ray's node process there healthy?")
    found: dict[str, T] = {}
    for node, answer in asked.items():
        try:
            found[node] = ray.get(answer)
        except ray.exceptions.RayError as error:
            # Most likely this package is not installed there: the last line names what could not be imported.
            reason = one_line(message_lines(error)[-1])
            raise RunError(f"{nodes[node]} cannot run this program: {reason}") from error
    return found
