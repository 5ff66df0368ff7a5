"""The demo's data: on every machine, the same every time, held-out text never trained on."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from launcher.recipes import stdlib_docstrings
from launcher.recipes.stdlib_docstrings import pairs

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def splits() -> tuple[Rows, Rows]:
    return list(pairs("train")), list(pairs("held_out"))


def modules(rows: Rows) -> set[str]:
    return {row["prompt"].removeprefix("What does ").split(".", 1)[0] for row in rows}


def test_splits_share_no_module_and_no_docstring(splits: tuple[Rows, Rows]) -> None:
    train, held_out = splits
    assert modules(train).isdisjoint(modules(held_out))
    assert {row["answer"] for row in train}.isdisjoint(row["answer"] for row in held_out)
    assert len(modules(train)) > 50
    assert len(modules(held_out)) >= 5


def test_there_is_enough_and_nothing_empty_long_or_twice(splits: tuple[Rows, Rows]) -> None:
    train, held_out = splits
    assert len(train) > 3000
    assert len(held_out) > 64
    for rows in splits:
        assert all(20 <= len(row["answer"].encode()) <= 1000 for row in rows)
        assert all(row["answer"] == row["answer"].strip() for row in rows)
        assert all(row.keys() == {"prompt", "answer"} for row in rows)
        assert all(row["prompt"].startswith("What does ") and row["prompt"].endswith(" do?") for row in rows)
        assert len({row["answer"] for row in rows}) == len({row["prompt"] + row["answer"] for row in rows}) == len(rows)


def test_a_pair_that_every_python_has(splits: tuple[Rows, Rows]) -> None:
    rows = [row for part in splits for row in part if row["prompt"].startswith("What does textwrap.dedent(")]
    (row,) = rows
    assert row["prompt"] == "What does textwrap.dedent(text) do?"
    assert row["answer"].startswith("Remove any common leading whitespace from every line in `text`.\n\n")


def test_rows_come_in_an_order_that_mixes_modules_and_is_the_same_every_time(splits: tuple[Rows, Rows]) -> None:
    assert list(pairs("held_out")) == splits[1]
    assert len(modules(splits[0][:50])) > 15


def test_longer_docstrings_on_request(splits: tuple[Rows, Rows]) -> None:
    shorter = list(pairs("train", max_answer_bytes=100))
    assert 0 < len(shorter) < len(splits[0])
    assert max(len(row["answer"].encode()) for row in shorter) <= 100


def test_a_split_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"^split 'test' is neither 'train' nor 'held_out'$"):
        list(pairs("test"))  # type: ignore[arg-type]


def test_documented_names_of_a_module() -> None:
    tree = ast.parse(
        '''
def f(a, *, b=1):
    """Does f."""
    def inner():
        """Not reachable by a name."""
class C:
    """Is C."""
    async def g(self):
        """
        Does g.

          More.
        """
    def _hidden(self):
        """Not public."""
    def bare(self): ...
    def blank(self):
        "   "
'''
    )
    assert list(stdlib_docstrings._documented_in(tree, "m")) == [
        ("m.f(a, *, b=1)", "Does f."),
        ("m.C", "Is C."),
        ("m.C.g(self)", "Does g.\n\n  More."),
    ]


def test_files_that_do_not_parse_are_left_out(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "a.py").write_text('def f():\n    """Does \\d f."""\n')
    (tmp_path / "b.py").write_text("def f(:\n")
    (tmp_path / "c.py").write_bytes(b"x = 1\0")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "d.py").write_text('def f():\n    """Is a test."""\n')
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text('def f():\n    """Is in p."""\n')
    assert list(stdlib_docstrings._documented_below(tmp_path)) == [("a.f()", "Does \\d f."), ("p.f()", "Is in p.")]
    assert list(recwarn) == []
