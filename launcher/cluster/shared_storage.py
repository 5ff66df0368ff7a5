"""Whether every node sees the run's folder: asked of the nodes, not guessed from the path."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from launcher.cluster.nodes import ask_nodes
from uld_ds.errors import UserError


def check_shared(folder: Path, nodes: Mapping[str, str], key: str = "run.storage") -> None:
    """Write a probe file and have a small task on every node look for it.

    Args:
        folder: where the probe is written; absolute.
        nodes: node id of Ray -> address, for every node that may get a worker.
        key: of the recipe, for the message.

    Raises:
        UserError: a node does not see the folder, or cannot write to it.
        RunError: a node does not answer.
    """
    if len(nodes) < 2:
        return
    token = uuid.uuid4().hex
    probe = folder / f".probe-{token}"
    probe.write_text(token, encoding="utf-8")
    try:
        found = ask_nodes(_look, nodes, str(probe), token)
    finally:
        probe.unlink(missing_ok=True)
    blind = [f"{nodes[node]} ({reason})" for node, reason in found.items() if reason is not None]
    if blind:
        raise UserError(
            key,
            f"{str(folder)!r} is not shared by the cluster's {len(nodes)} nodes: {', '.join(sorted(blind))}",
            "name a folder of storage that every node mounts at the same path",
        )


def _look(probe: str, token: str) -> str | None:
    """Find what keeps the node that this runs on from using the folder; None if nothing does."""
    file = Path(probe)
    try:
        # A listing first: network file systems may remember that a name did not exist.
        list(file.parent.iterdir())
        if file.read_text(encoding="utf-8") != token:
            return "sees other content"
        written = file.with_name(f"{file.name}-{os.getpid()}")
        written.write_text(token, encoding="utf-8")
        written.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None
