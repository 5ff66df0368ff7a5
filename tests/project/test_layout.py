"""Tests lie where the code lies that they are about, and share what they share through `tests/helpers/` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
MODULES = sorted(TESTS.rglob("*.py"))
MIRRORED = sorted((TESTS / "uld_ds").rglob("test_*.py"))
PACKAGES = sorted({file.parent for file in MIRRORED})

# Of no one module, each with its reason; everything else is named after the module that it is about.
OF_NO_MODULE = {
    "evaluation/test_extras.py": "metrics of two modules that need packages which may not be there",
    "tasks/test_tasks.py": "one assertion for every task of the package",
    "teachers/test_sources.py": "sources of teacher outputs compared with one another",
    "teachers/store/test_damage.py": "what a reader makes of damage that no writer does",
    "teachers/store/test_real_weights.py": "size and losses of a store of a real model's outputs",
    "uld/test_accuracy.py": "all ways to the distance against one reference",
    "uld/test_fused.py": "the package's function that is distance, gradient and cross-entropy at once",
    "uld/test_inputs.py": "what all ways to the distance are given and refuse",
    "uld/test_scales.py": "temperature and scales, for all ways to the distance",
}


def imported(source: str, package: str) -> Iterator[str]:
    """Yield the full names of the modules that a source in a package imports or may import names as, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def of_tests(names: Iterator[str]) -> list[str]:
    return [name for name in names if name.startswith("tests.") and any(p.startswith("test_") for p in name.split("."))]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(TESTS)))
def test_nothing_imports_a_test_module(file: Path) -> None:
    """Two modules that share something are not each other's: it belongs into a helper or a conftest.py."""
    package = ".".join(file.relative_to(ROOT).parent.parts)
    assert of_tests(imported(file.read_text(), package)) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from tests.uld_ds.data.test_batching import rows", ["tests.uld_ds.data.test_batching"]),
        ("def f():\n    import tests.uld_ds.data.test_batching as t", ["tests.uld_ds.data.test_batching"]),
        ("from tests.uld_ds.data import test_batching", ["tests.uld_ds.data.test_batching"]),
        ("from .test_batching import rows", ["tests.uld_ds.data.test_batching"]),
        ("from ..data import test_batching", ["tests.uld_ds.data.test_batching"]),
        ("from tests.helpers.ranks import run_on_ranks", []),
    ],
)
def test_every_form_of_an_import_is_seen(source: str, found: list[str]) -> None:
    assert {name.removesuffix(".rows") for name in of_tests(imported(source, "tests.uld_ds.data"))} == {*found}


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: str(folder.relative_to(TESTS)))
def test_a_folder_of_tests_is_a_package_of_the_code(folder: Path) -> None:
    assert (ROOT / folder.relative_to(TESTS)).is_dir()
    # Without it, two test modules of one name in two folders would be one module.
    assert (folder / "__init__.py").is_file()


@pytest.mark.parametrize("file", MIRRORED, ids=lambda file: str(file.relative_to(TESTS)))
def test_a_file_of_tests_is_named_after_its_module(file: Path) -> None:
    place = file.relative_to(TESTS)
    module = ROOT / place.parent / place.name.removeprefix("test_")
    is_named_after_one = module.is_file() or module.with_suffix("").is_dir()
    name = str(place.relative_to("uld_ds"))
    if name in OF_NO_MODULE:
        assert not is_named_after_one, f"{name} has a module now; take it off the list"
    else:
        assert is_named_after_one, f"no {module.relative_to(ROOT)}; rename the test, or say here why it is of none"


def test_what_is_of_no_module_is_there() -> None:
    assert [name for name in OF_NO_MODULE if not (TESTS / "uld_ds" / name).is_file()] == []
