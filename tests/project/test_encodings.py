"""Files of text are UTF-8 in every locale: whoever reads or writes one says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = {"read_text", "write_text"}


def without_encoding(code: str) -> Iterator[int]:
    """The lines of calls that open a file as text in whatever encoding the locale has."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or any(keyword.arg in ("encoding", None) for keyword in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in TEXT or (name in ("open", "fdopen") and _is_text_mode(node)):
            yield node.lineno


def _is_text_mode(node: ast.Call) -> bool:
    # Of pathlib's open the mode comes first, of the others second.
    is_method = isinstance(node.func, ast.Attribute) and node.func.attr == "open"
    modes = [keyword.value for keyword in node.keywords if keyword.arg == "mode"] or node.args[0 if is_method else 1 :]
    mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else ("" if modes else "r")
    # (A method that is called with something else opens no file of this machine.)
    return isinstance(mode, str) and mode != "" and set(mode) <= set("rwaxt+")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("file.read_text()", [1]),
        ("file.write_text(x)\n", [1]),
        ("open(file)", [1]),
        ("open(file, 'rb')", []),
        ("file.open()", [1]),
        ("file.open('a')", [1]),
        ("file.open('xb')", []),
        ("file.open(mode='w', encoding='utf-8')", []),
        ("os.fdopen(1, 'w')", [1]),
        ("Store.open(place, key='x')", []),
        ("file.read_text(encoding='utf-8')", []),
    ],
)
def test_the_search_finds_what_it_is_for(code: str, found: list[int]) -> None:
    assert list(without_encoding(code)) == found


@pytest.mark.parametrize("folder", ["uld_ds", "launcher"])
def test_no_file_is_opened_in_the_encoding_of_the_locale(folder: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in without_encoding(file.read_text(encoding="utf-8"))
    ]
    assert found == []
