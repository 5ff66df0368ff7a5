"""What packages export is their ``__all__``, and the page of the Python API names what may be relied on, as it is."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/api.md").read_text()
PACKAGES = ("alignment", "losses", "recipe", "spectrum", "tasks", "teachers", "uld")
LAZY_IMPORTS_NEED = {"TYPE_CHECKING", "Any", "annotations"}
STABLE = {
    "uld_ds.alignment.Segment",
    "uld_ds.alignment.align",
    "uld_ds.alignment.token_spans",
    "uld_ds.spectrum.Spectrum",
    "uld_ds.uld.uld_distance",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_exports_what_its_all_says(package: str) -> None:
    module = importlib.import_module(f"uld_ds.{package}")
    assert module.__all__ == sorted(set(module.__all__), key=lambda name: (not name.isupper(), name[0].islower(), name))
    # Some come only when they are asked for.
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    public = {name for name, value in vars(module).items() if not name.startswith("_") and not _is_module(value)}
    assert public - LAZY_IMPORTS_NEED - set(module.__all__) == set()


def test_that_starts_and_shards_nothing() -> None:
    code = "".join(f"from uld_ds.{package} import *\n" for package in PACKAGES)
    code += "import sys; print({'ray', 'deepspeed', 'mlflow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---- the page


def section(title: str) -> str:
    """Return what is under a heading of the page, but not what has no Python names."""
    text = re.split(rf"^## {title}$", PAGE, flags=re.M)[1]
    return re.split(r"^## |^### Outside of Python$", text, flags=re.M)[0]


def named(text: str) -> Iterator[tuple[str, str]]:
    """Yield module and call of everything named in the first column of a section's tables."""
    module = None
    for cell in re.findall(r"^\| ([^|]+) \|", text, flags=re.M):
        for code in re.findall(r"`([^`]+)`", cell):
            if full := re.match(r"(uld_ds(?:\.[a-z_]+)*)\.(?=\w+(?:\.\w+)*\(|[A-Z])(.+)", code):
                module = full[1]
                yield module, full[2]
            elif code.startswith("uld_ds."):
                module = code
            # What is done with a spectrum at hand (`spectrum.to(device)`) is no name to import.
            elif (
                module is not None
                and re.match(r"[A-Z][\w.]+(\(|$)|[a-z_]+(\(|$)", code)
                and not code.startswith("len(")
            ):
                yield module, code


def resolve(module: str, code: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in re.match(r"[\w.]+", code)[0].split("."):  # type: ignore[index]
        found = getattr(found, part)
    return found


def test_it_names_exactly_the_stable_names() -> None:
    names = {f"{module}.{re.split(r'[.(]', code)[0]}" for module, code in named(section("Stable"))}
    assert names == STABLE


@pytest.mark.parametrize("title", ["Stable", "Provisional"])
def test_what_it_names_is_exported(title: str) -> None:
    calls = list(named(section(title)))
    assert len(calls) >= 8
    for module, code in calls:
        exported = getattr(importlib.import_module(module), "__all__", None)
        assert resolve(module, code) is not None
        assert exported is None or re.split(r"[.(]", code)[0] in exported, (module, code)


CALLS = [(module, code) for module, code in named(PAGE) if re.search(r"\(.+\)", code) and "..." not in code]


@pytest.mark.parametrize(("module", "code"), CALLS, ids=[code.split("(")[0] for _, code in CALLS])
def test_arguments_are_as_it_says(module: str, code: str) -> None:
    """Names, order, kinds and defaults of those that the page shows; provisional keywords may follow."""
    scope: dict[str, Any] = {"range": range}
    shown = code[code.index("(") : code.rindex(")") + 1]
    exec(f"from __future__ import annotations\ndef shown{shown}: ...", scope)
    actual = inspect.signature(resolve(module, code)).parameters
    for name, parameter in inspect.signature(scope["shown"]).parameters.items():
        assert name in actual, (code, list(actual))
        assert parameter.default == actual[name].default, name
        assert parameter.kind == actual[name].kind, name


def test_there_is_something_to_compare() -> None:
    assert {code.split("(")[0] for _, code in CALLS} >= {"token_spans", "align", "Segment", "uld_distance"}


def _is_module(value: object) -> bool:
    return isinstance(value, ModuleType)
