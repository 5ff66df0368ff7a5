"""What a wheel must hold: modules come by themselves, other files only where pyproject.toml names them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import uld_ds

ROOT = Path(__file__).parents[2]
PACKAGES = ("uld_ds", "launcher", "ds_configs")


def test_every_file_beside_the_modules_is_package_data() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    named = {
        path
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    there = {path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts}
    assert ROOT / "uld_ds/py.typed" in there
    assert sorted(there - named) == []


def test_every_folder_of_modules_is_a_package() -> None:
    """Else a wheel has none of its files."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_types_are_found_beside_the_code() -> None:
    assert (Path(uld_ds.__file__).parent / "py.typed").is_file()
