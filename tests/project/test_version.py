"""One version number, in ``uld_ds/__init__.py``: what is built, installed and deployed has it from there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from setuptools.config.pyprojecttoml import read_configuration

from uld_ds import __version__

ROOT = Path(__file__).parents[2]
IMAGE = re.compile(r"(?:uld-ds(?:-[a-z]+)?:|newTag: )(\d+\.\d+\.\d+)")


def test_a_build_takes_it_from_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert "version" not in project
    assert read_configuration(ROOT / "pyproject.toml")["project"]["version"] == __version__


def test_the_number_is_a_release_s_and_what_is_installed_has_it() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", __version__)
    assert version("uld-ds") == __version__, "installed before the number changed: touch pyproject.toml; make install"


def test_no_other_file_has_a_number_of_its_own() -> None:
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    files = [path for path in (ROOT / "k8s").rglob("*") if path.is_file()]
    tags = [tag for path in files for tag in IMAGE.findall(path.read_text())]
    assert len(tags) >= 10
    assert set(tags) == {__version__}


def test_asking_for_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'deepspeed', 'mlflow', 'transformers', 'numpy', 'pydantic'}"
    code = f"import sys; from uld_ds import __version__; print(__version__, {heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{__version__} set()\n"
