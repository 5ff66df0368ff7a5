"""Questions and answers that every machine has: the docstrings of Python's own standard library.

Read with ``ast``, nothing is imported. Used by demo.yaml; an example of a generator that a recipe names.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
HELD_OUT_PERCENT = 8


def pairs(split: Literal["train", "held_out"], max_answer_bytes: int = 1000) -> Iterator[dict[str, str]]:
    """Yield prompt and answer for every documented function and class, in a fixed shuffled order.

    Args:
        split: ``train`` and ``held_out`` share no top-level module and no docstring.
        max_answer_bytes: longer docstrings are left out.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split {split!r} is neither 'train' nor 'held_out'")
    # Many methods repeat the docstring of another one, also across modules: the first to have it keeps it.
    first_name: dict[str, str] = {}
    for name, doc in _documented():
        if 20 <= len(doc.encode()) <= max_answer_bytes:
            first_name.setdefault(doc, name)
    rows = [
        {"prompt": f"What does {name} do?", "answer": doc}
        for doc, name in first_name.items()
        if (split == "held_out") == _is_held_out(name)
    ]
    yield from sorted(rows, key=lambda row: _digest(row["prompt"] + row["answer"]))


def _is_held_out(name: str) -> bool:
    top_level_module = name.split(".", maxsplit=1)[0]
    return int(_digest(top_level_module)[:8], 16) % 100 < HELD_OUT_PERCENT


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def _documented() -> tuple[tuple[str, str], ...]:
    return tuple(_documented_below(Path(sysconfig.get_path("stdlib"))))


def _documented_below(root: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts):
            module = ".".join(part for part in parts if part != "__init__")
            tree = _parsed(file)
            if tree is not None:
                yield from _documented_in(tree, module)


def _parsed(file: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own old escapes
        try:
            return ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return None


def _documented_in(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{prefix}.{child.name}"
        doc = ast.get_docstring(child, clean=False)
        if doc and doc.strip() and not child.name.startswith("_"):
            yield name + _signature(child), inspect.cleandoc(doc).strip()
        if isinstance(child, ast.ClassDef):
            yield from _documented_in(child, name)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    return "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
