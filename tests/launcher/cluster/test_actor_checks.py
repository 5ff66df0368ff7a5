"""What the actors' own Python lacks is said in one line, before anything starts."""

from __future__ import annotations

import importlib.metadata
import platform
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster import actor_checks
from launcher.cluster.actor_checks import check_actors, check_engine, lacking, rollout_actors
from uld_ds.errors import UserError
from uld_ds.recipe import parse_recipe
from uld_ds.recipe.actors import RolloutActorSettings
from uld_ds.version import __version__

HERE = {"python": platform.python_version(), "ray": importlib.metadata.version("ray"), "uld-ds": __version__}


def program(file: Path, text: str) -> str:
    """An interpreter of our own that says what it is told to."""
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_only_a_vllm_recipe_has_actors(tiny_recipe: dict[str, Any]) -> None:
    assert rollout_actors(parse_recipe(tiny_recipe)) is None
    assert rollout_actors(parse_recipe(tiny_recipe | {"rollouts": {"share": 0.25}})) is None
    actors = rollout_actors(parse_recipe(tiny_recipe | {"rollouts": {"engine": "vllm", "actors": {"count": 2}}}))
    assert actors is not None and actors.count == 2


def test_vllm_that_is_not_installed(tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_checks, "find_spec", lambda name: None)
    check_engine(parse_recipe(tiny_recipe))
    check_engine(parse_recipe(tiny_recipe | {"rollouts": {"engine": "transformers"}}))
    with pytest.raises(UserError) as caught:
        check_engine(parse_recipe(tiny_recipe | {"rollouts": {"engine": "vllm"}}))
    assert str(caught.value) == (
        "rollouts.engine: 'vllm' is not installed; pip install 'uld-ds[vllm]' on every node, or name a Python that has "
        "it as rollouts.actors.python"
    )
    # Another Python is asked when there is a cluster.
    check_engine(parse_recipe(tiny_recipe | {"rollouts": {"engine": "vllm", "actors": {"python": "/x"}}}))


def test_what_another_python_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    assert lacking(str(tmp_path / "none"), HERE) == "No such file or directory"
    broken = program(tmp_path / "broken", "echo 'Traceback' >&2; echo \"ModuleNotFoundError: No module\" >&2; exit 1")
    assert lacking(broken, HERE) == "ModuleNotFoundError: No module"
    said = '{"python": "%s", "ray": "2.1.0", "uld-ds": "%s", "vllm": true}' % (HERE["python"], __version__)  # noqa: UP031
    older = program(tmp_path / "older", f"echo a warning; echo '{said}'")
    assert lacking(older, HERE) == f"ray 2.1.0 (here {HERE['ray']})"
    assert lacking(older, HERE | {"ray": "2.1.0"}) is None
    # This interpreter is like itself; whether it has vLLM is another matter.
    assert lacking(sys.executable, HERE) in (None, "no vllm")
    assert lacking(sys.executable, HERE | {"python": "3.9.1"}) is not None


def test_nodes_whose_python_lacks_something_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"n1": None, "n2": "no vllm", "n3": "No such file or directory"}
    monkeypatch.setattr(actor_checks, "ask_nodes", lambda question, nodes, *arguments: found)
    nodes = {"n1": "10.0.0.1", "n2": "10.0.0.2", "n3": "10.0.0.3"}
    check_actors(RolloutActorSettings(), nodes)
    with pytest.raises(UserError) as caught:
        check_actors(RolloutActorSettings(python="/opt/py"), nodes)
    assert str(caught.value) == (
        "rollouts.actors.python: '/opt/py' cannot run the actors (10.0.0.2: no vllm; "
        "10.0.0.3: No such file or directory); give it vllm, and the Python, ray and uld-ds (pip install --no-deps) "
        "that the workers have"
    )
