"""A fixed tiny run gives the bits it gave when the reference was made: what a change of structure must leave alone.

After a change that is meant to alter what is computed, make the reference anew, and say so in the commit::

    env ATEN_CPU_CAPABILITY=default ... python -m tests.helpers.trajectory tests/integration/reference_trajectory.json

(the module names the variables that it wants).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.trajectory import PINNED, STEPS, made_with

REFERENCE: dict[str, Any] = json.loads(Path(__file__).with_name("reference_trajectory.json").read_text())
RUNS = ("online, 1 rank", "online, 2 ranks", "stored, 2 ranks")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("trajectory") / "found.json"
    command = [sys.executable, "-m", "tests.helpers.trajectory", str(file)]
    done = subprocess.run(command, env=os.environ | PINNED, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(file.read_text())


def numbers(run: dict[str, Any]) -> list[float]:
    return [float.fromhex(text) for text in (*run["losses"], *run["bits per byte"].values())]


@pytest.mark.parametrize("run", RUNS)
def test_losses_are_those_of_the_reference(found: dict[str, Any], run: str) -> None:
    assert len(found[run]["losses"]) == STEPS
    assert numbers(found[run]) == pytest.approx(numbers(REFERENCE[run]), rel=1e-3)


@pytest.mark.parametrize("part", [*RUNS, "store"])
def test_bits_are_those_of_the_reference(found: dict[str, Any], part: str) -> None:
    if made_with() != REFERENCE["made with"]:
        pytest.skip(f"other libraries than the reference's: {made_with()}")
    assert found[part] == REFERENCE[part]


def test_laying_examples_end_to_end_changes_rounding_alone(found: dict[str, Any]) -> None:
    packed, padded = (found[name] for name in ("packed, 1 rank", "online, 1 rank"))
    assert numbers(packed) == pytest.approx(numbers(padded), rel=1e-4)
    assert packed["export"] != padded["export"], "both were computed in one way"


def test_the_number_of_ranks_changes_rounding_alone() -> None:
    one, two = (numbers(REFERENCE[f"online, {ranks}"]) for ranks in ("1 rank", "2 ranks"))
    assert one == pytest.approx(two, rel=1e-4)
