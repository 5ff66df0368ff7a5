"""The Dockerfile: pinned, without root, from a small context that holds what it needs. No image is built here."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from tests.k8s.rendering import OVERLAYS, needs_kubectl, only, pod_templates, render
from uld_ds.version import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "k8s" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
TARGETS = ("cpu", "cuda", "cuda-vllm", "mlflow")
ONE_VERSION = r"[\w-]+==[\d.]+"


def stages() -> dict[str, tuple[str, str]]:
    """Name -> what the stage is from, and its instructions."""
    parts = re.split(r"^FROM (\S+) AS (\S+)\n", DOCKERFILE, flags=re.M)[1:]
    return {name: (base, body) for base, name, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def lineage(name: str) -> list[str]:
    """A stage's instructions with those of the stages it is from, the oldest first."""
    known = stages()
    base, body = known[name]
    return [*(lineage(base) if base in known else [f"FROM {base}"]), body]


def test_base_is_a_release() -> None:
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, flags=re.M)
    outside = {base for base, _ in stages().values() if base not in stages()}
    assert outside == {"python:${PYTHON}"}


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_without_root_and_without_what_built_them(target: str) -> None:
    first, *rest = lineage(target)
    users = re.findall(r"^USER (\S+)$", "".join(rest), flags=re.M)
    assert users[-1] == "10001:10001"
    assert first == "FROM python:${PYTHON}"
    # The last stage installs nothing: pip, its cache and the sources stay behind.
    assert "pip install" not in "".join(rest)
    assert re.findall(r"^COPY (\S+)", "".join(rest), flags=re.M) == [f"--from=build-{target}"]


def test_versions_are_those_of_the_constraints() -> None:
    assert set(re.findall(r"torch==[\d.]+", DOCKERFILE)) == {line for line in CONSTRAINTS if line.startswith("torch==")}
    for command in re.findall(r"pip install (.*?)(?:\n(?!\s*&&)|$)", DOCKERFILE, flags=re.S):
        for part in re.split(r"\s*\\?\n\s*&& pip install ", command):
            pinned = "--constraint constraints.txt" in part or "--require-hashes" in part
            alone = part.strip() == "--no-deps ." or re.fullmatch(rf"(--index-url \S+ )?{ONE_VERSION}", part.strip())
            # In the Python of vLLM, whose versions are not ours.
            beside = re.fullmatch(r'vllm==[\d.]+ "ray\[default\]==[\d.]+"', part.strip())
            assert pinned or alone or beside, part
    # An actor talks to the workers: both have one Ray.
    (ray,) = re.findall(r"ray\[default\]==([\d.]+)", DOCKERFILE)
    assert f"ray=={ray}" in CONSTRAINTS
    extra = {re.match(r"[\w-]+", item)[0] for item in PROJECT["project"]["optional-dependencies"]["mlflow-server"]}  # type: ignore[index]
    (installed,) = re.findall(r"^RUN pip install --constraint constraints.txt (mlflow .*)$", DOCKERFILE, flags=re.M)
    assert set(installed.split()) == extra
    names = {line.split("==")[0] for line in CONSTRAINTS if "==" in line}
    assert extra <= names


@needs_kubectl
@pytest.mark.parametrize("folder", OVERLAYS)
def test_manifests_name_images_that_it_makes(folder: str) -> None:
    objects = render(folder)
    made = {f"uld-ds-{target}:{__version__}" for target in TARGETS}
    for found in (only(objects, "RayJob"), only(objects, "Deployment", "mlflow")):
        for pod in pod_templates(found):
            for container in pod.containers:
                assert container["image"].rpartition("/")[2] in made


def sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the context: the last pattern for it or a folder above it decides."""
    above = ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/") + 1)]
    let_in = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").strip()
        if not pattern or pattern.startswith("#"):
            continue
        anywhere = pattern.startswith("**/")
        names = [part for whole in above for part in [whole.rpartition("/")[2] if anywhere else whole]]
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            let_in = line.startswith("!")
    return let_in


def test_context_is_small_and_whole() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    context = [name for name in tracked if name and sent(name)]
    assert sum((ROOT / name).stat().st_size for name in context if (ROOT / name).is_file()) < 3e6
    folders = {Path(name).parent.as_posix() for name in context}
    packages = find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    assert {"uld_ds", "uld_ds.runs", "launcher.drivers", "ds_configs"} <= set(packages)
    assert {package.replace(".", "/") for package in packages} <= folders
    # What a build reads the version from, and types and templates.
    assert {"uld_ds/version.py", "uld_ds/py.typed", "uld_ds/reporting/templates/run.html.j2"} <= set(context)
    assert {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], "LICENSE"} <= set(context)
    assert "launcher/recipes/demo-teacher.txt" in context
    for outside in ("tests/conftest.py", "runs/demo/result.json", ".venv/bin/python", ".git/HEAD", "k8s/Dockerfile"):
        assert not sent(outside), outside
    assert not sent("uld_ds/__pycache__/uld.cpython-311.pyc")
