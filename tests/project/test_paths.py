"""Paths that documents name exist, and so do the names that they say are in them.

Looked at are code in backticks, links, and typed commands: a word that begins like one of the repository's folders is a
path of it. "`name` of `path`", "`name` in `path`" and "`name` (`path`)" say that the path holds the name.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("uld_ds", "launcher", "tests", "benchmarks", "docs", "k8s", "ds_configs")
AT_THE_TOP = ("Makefile", "pyproject.toml", "mkdocs.yml", "constraints.txt", "LICENSE", "CONTRIBUTING.md")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(page for part in ("docs", "k8s") for page in (ROOT / part).rglob("*.md"))])
SOURCES = sorted(
    file
    for folder in ("uld_ds", "launcher", "benchmarks", "docs", "k8s", "ds_configs")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in {".py", ".yaml", ".env", ".json"} or file.name == "Dockerfile"
)
SOURCES += [ROOT / name for name in ("Makefile", "pyproject.toml", "mkdocs.yml")]

# What a page has its reader write, and pages that exist when the documentation is built.
TO_BE_WRITTEN = {"uld_ds/tasks/riddles.py"}
GENERATED = {"docs/recipe.md"}

PATH = re.compile(rf"(?<![\w./~$-])(?:(?:{'|'.join(FOLDERS)})/[\w./*-]*|(?:{'|'.join(map(re.escape, AT_THE_TOP))})\b)")
FILE = re.compile(rf"(?<![\w./~$-])(?:{'|'.join(FOLDERS)})/[\w./-]*\.(?:py|md|yaml|json|toml|txt|svg|env)\b")
NAME = r"`([A-Za-z_][\w.]*)(?:\(\))?`"
NAMED_IN = re.compile(rf"{NAME}(?:\s+(?:of|in)\s+|\s+\()\[?`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")


# ---- what a document says


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def named_paths(text: str) -> Iterator[str]:
    """Find the repository's paths in code spans and in commands."""
    spans = re.findall(r"`([^`]+)`", without_blocks(text))
    commands = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for code in [*spans, *commands]:
        for found in PATH.findall(code):
            yield found.rstrip(".")


def linked_paths(text: str, page: Path, root: Path) -> Iterator[str]:
    """Find what links lead to, from the repository's root on."""
    for target in re.findall(r"\]\(([^)#\s]+)", without_blocks(text)):
        if not re.match(r"\w+:", target):
            yield os.path.relpath(page.parent / target, root)


def is_there(path: str, root: Path) -> bool:
    return any(root.glob(path)) if "*" in path else (root / path).exists()


def wrong_paths(text: str, page: Path, root: Path) -> list[str]:
    """List the paths of a document that lead nowhere."""
    named = set(named_paths(text)) - TO_BE_WRITTEN
    linked = set(linked_paths(text, page, root)) - GENERATED
    return sorted(path for path in named | linked if not is_there(path, root))


# ---- what a file defines


def defined_names(tree: ast.AST, *, imports: bool) -> set[str]:
    """Collect the names that Python source defines at any depth, methods and fields as ``Class.name``, too."""
    found: set[str] = set()

    def visit(node: ast.AST, within: str) -> None:
        for child in ast.iter_child_nodes(node):
            names = []
            inner = within
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [child.name]
                inner = f"{within}{child.name}." if isinstance(child, ast.ClassDef) else within
            elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                names = [child.id]
            elif isinstance(child, ast.ImportFrom) and imports:
                names = [alias.asname or alias.name for alias in child.names]
            found.update(name for bare in names for name in (bare, within + bare))
            visit(child, inner)

    visit(tree, "")
    return found


def holds(path: Path, name: str) -> bool:
    """Tell whether a file defines a name; of a folder, any of its Python files; other files just say it."""
    if path.is_dir():
        return any(holds(file, name) for file in path.rglob("*.py"))
    if path.suffix != ".py":
        return re.search(rf"\b{re.escape(name.split('.')[-1])}\b", path.read_text(encoding="utf-8")) is not None
    return name in defined_names(ast.parse(path.read_text(encoding="utf-8")), imports=path.name == "__init__.py")


def wrong_names(text: str, root: Path) -> list[str]:
    """List the names that are not where a document says they are."""
    named = [(name, path) for name, path in NAMED_IN.findall(without_blocks(text)) if path not in TO_BE_WRITTEN]
    return [f"{name} of {path}" for name, path in named if not ((root / path).exists() and holds(root / path, name))]


# ---- the repository's own


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_documents_name_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert wrong_paths(text, page, ROOT) == []
    assert wrong_names(text, ROOT) == []


def test_files_that_sources_name_are_there() -> None:
    """In docstrings, comments and messages."""
    wrong = [
        f"{source.relative_to(ROOT)}: {path}"
        for source in SOURCES
        for path in FILE.findall(source.read_text(encoding="utf-8"))
        if path not in TO_BE_WRITTEN | GENERATED and not (ROOT / path).exists()
    ]
    assert wrong == []


def test_there_is_much_to_check() -> None:
    texts = [page.read_text(encoding="utf-8") for page in DOCUMENTS]
    assert len({path for text in texts for path in named_paths(text)}) >= 40
    assert sum(len(NAMED_IN.findall(without_blocks(text))) for text in texts) >= 8


# ---- what is wrong is found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of two files and a page."""
    (tmp_path / "uld_ds").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "uld_ds" / "__init__.py").write_text("from uld_ds.loss import Loss as Loss\n")
    (tmp_path / "uld_ds" / "loss.py").write_text(
        "SCALE: float = 2.0\n\n\nclass Loss:\n    weight: float\n\n    def add(self) -> float:\n        return 0.0\n"
    )
    (tmp_path / "docs" / "page.md").write_text("# A page\n")
    (tmp_path / "Makefile").write_text("lint:\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("see `uld_ds/loss.py`, `uld_ds/`, `uld_ds/*.py` and `Makefile`", []),
        ("`python uld_ds/loss.py --quick` and `~/uld_ds/none.py`, `runs/uld_ds/none.py`", []),
        ("see `uld_ds/lost.py`.", ["uld_ds/lost.py"]),
        ("see `uld_ds/*.yaml`", ["uld_ds/*.yaml"]),
        ("see `python uld_ds/lost.py\n--quick` and `constraints.txt`", ["constraints.txt", "uld_ds/lost.py"]),
        ("```bash\npython uld_ds/lost.py\n```\n", ["uld_ds/lost.py"]),
        ("```\nuld_ds/lost.py is what was printed\n```\n", []),
        ("[a](page.md#top), [b](../uld_ds/loss.py), [c](https://example.org/x.md), [d](#here), [e](recipe.md)", []),
        ("[a](pages.md) and ![b](../uld_ds/lost.svg)", ["docs/pages.md", "uld_ds/lost.svg"]),
    ],
)
def test_wrong_paths_are_found(tree: Path, text: str, wrong: list[str]) -> None:
    assert wrong_paths(text, tree / "docs" / "page.md", tree) == wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            "`Loss` of `uld_ds/loss.py`, `SCALE` in\n`uld_ds/loss.py`, `Loss` (`uld_ds/__init__.py`), `add()` of "
            "`uld_ds/`",
            [],
        ),
        ("`Loss.add` and `Loss.weight` in `uld_ds/loss.py`; `lint` of `Makefile`", []),
        ("`Lost` of `uld_ds/loss.py`", ["Lost of uld_ds/loss.py"]),
        ("`Loss.sub` in [`uld_ds/loss.py`](../uld_ds/loss.py)", ["Loss.sub of uld_ds/loss.py"]),
        ("`SCALE` (`uld_ds/__init__.py`)", ["SCALE of uld_ds/__init__.py"]),
        ("`Loss` of `uld_ds/lost.py`", ["Loss of uld_ds/lost.py"]),
        ("`page` of `docs/page.md`, `book` of `docs/page.md`", ["book of docs/page.md"]),
        ("`batch size` of `uld_ds/loss.py` and `Lost` of the page", []),
    ],
)
def test_wrong_names_are_found(tree: Path, text: str, wrong: list[str]) -> None:
    assert wrong_names(text, tree) == wrong
