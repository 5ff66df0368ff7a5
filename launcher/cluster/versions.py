"""Whether every node has this environment's libraries: different ones fail late, or in their numbers."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.cluster.nodes import ask_nodes
from uld_ds.errors import UserError
from uld_ds.utils.environment import library_versions
from uld_ds.version import __version__


def check_versions(nodes: Mapping[str, str]) -> None:
    """Check that every node has the versions of this process's libraries.

    Args:
        nodes: node id of Ray -> address, for every node that may get a worker.

    Raises:
        UserError: a node has other versions than this process.
        RunError: a node does not answer.
    """
    if len(nodes) < 2:
        return
    found = {nodes[node]: versions for node, versions in ask_nodes(versions_here, nodes).items()}
    different = differences(versions_here(), found)
    if different:
        raise UserError(
            "cluster",
            f"nodes have other versions than this process: {'; '.join(different)}",
            "install the same environment on every node (constraints.txt)",
        )


def versions_here() -> dict[str, str]:
    """Collect the versions of this package and the libraries it computes with."""
    return {"uld-ds": __version__, **library_versions()}


def differences(here: Mapping[str, str], nodes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Write one sentence per node that differs, e.g. ``10.0.0.3: torch 2.6.0 (here 2.13.0)``."""
    said = []
    for address, there in sorted(nodes.items()):
        parts = [f"{name} {there.get(name, '-')} (here {own})" for name, own in here.items() if there.get(name) != own]
        if parts:
            said.append(f"{address}: {', '.join(parts)}")
    return said
