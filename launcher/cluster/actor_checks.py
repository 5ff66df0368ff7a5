"""Whether the actors of an engine find what they need: on every node that may hold one, in their own Python."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from launcher.cluster.nodes import ask_nodes
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe
from uld_ds.recipe.actors import EngineActorSettings
from uld_ds.version import __version__

# What an actor's Python says of itself. What must be like here has to be exactly so: the processes talk to each other.
_PROBE = """
import importlib.metadata, json, platform
from uld_ds.version import __version__
# Builds for other devices are distributed under other names.
vllm = importlib.metadata.packages_distributions().get("vllm")
print(json.dumps({
    "python": platform.python_version(),
    "ray": importlib.metadata.version("ray"),
    "uld-ds": __version__,
    "vllm": vllm and importlib.metadata.version(vllm[0]),
}))
"""
_SECONDS = 60.0
_FIX = "give it vllm, and the Python, ray and uld-ds (pip install --no-deps) that the workers have"


def rollout_actors(recipe: Recipe) -> EngineActorSettings | None:
    """Return the settings of the actors that a recipe wants beside its workers; None where it wants none."""
    rollouts = recipe.rollouts
    return rollouts.actors if rollouts is not None and rollouts.engine == "vllm" else None


def check_engine(recipe: Recipe) -> None:
    """Check what can be known of ``rollouts.engine: vllm`` before there is a cluster.

    Raises:
        UserError: vLLM is not installed.
    """
    actors = rollout_actors(recipe)
    if actors is not None:
        check_installed(actors)


def check_installed(actors: EngineActorSettings) -> None:
    """Check that vLLM is here where actors have no Python of their own.

    Raises:
        UserError: it is not installed.
    """
    if actors.python is None and find_spec("vllm") is None:
        key = f"{actors.section}.actors.python"
        fix = f"pip install 'uld-ds[vllm]' on every node, or name a Python that has it as {key}"
        raise UserError(f"{actors.section}.engine", "'vllm' is not installed", fix)


def vllm_version(actors: EngineActorSettings) -> str:
    """Return the version of vLLM in the actors' Python on this machine.

    Raises:
        UserError: there is none.
    """
    check_installed(actors)
    if actors.python is None:
        return vllm_version_here()
    said = _asked(actors.python)
    if isinstance(said, str) or not said["vllm"]:
        problem = said if isinstance(said, str) else "no vllm"
        raise UserError(f"{actors.section}.actors.python", f"{actors.python!r} cannot run the actors ({problem})", _FIX)
    return str(said["vllm"])


def vllm_version_here() -> str:
    """Return the version of vLLM in this process's environment, where it is installed."""
    # Builds for other devices are distributed under other names.
    return importlib.metadata.version(importlib.metadata.packages_distributions()["vllm"][0])


def check_actors(actors: EngineActorSettings, nodes: Mapping[str, str]) -> None:
    """Check that the actors' own Python, where they have one, can run them on every node.

    Args:
        actors: the recipe's.
        nodes: node id of Ray -> address, for every node that may get an actor.

    Raises:
        UserError: it cannot, with what it lacks.
        RunError: a node does not answer.
    """
    if actors.python is None:
        return
    found = ask_nodes(lacking, nodes, actors.python, _expected())
    problems = [f"{nodes[node]}: {problem}" for node, problem in sorted(found.items()) if problem is not None]
    if problems:
        raise UserError(
            f"{actors.section}.actors.python",
            f"{actors.python!r} cannot run the actors ({'; '.join(problems)})",
            _FIX,
        )


def lacking(python: str, expected: Mapping[str, object]) -> str | None:
    """Say what a Python interpreter on this machine lacks to run an actor; None if it lacks nothing."""
    said = _asked(python)
    if isinstance(said, str):
        return said
    other = [f"{name} {said[name]} (here {value})" for name, value in expected.items() if said[name] != value]
    return ", ".join(other + ([] if said["vllm"] else ["no vllm"])) or None


def _asked(python: str) -> dict[str, Any] | str:
    """Ask a Python interpreter what it has; or say why it does not answer."""
    try:
        done = subprocess.run(  # noqa: S603 (the recipe names it)
            [python, "-c", _PROBE], capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_SECONDS:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def _expected() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "ray": importlib.metadata.version("ray"),
        "uld-ds": __version__,
    }
