"""Errors cross processes as they are, and are said on one line."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from uld_ds.errors import LONGEST, RunError, UserError, message_lines, one_line

ROOT = Path(__file__).parents[2]


def test_a_users_mistake_survives_the_way_from_a_worker() -> None:
    error = UserError("data.train", "'x' is not there", "correct it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.key) == (UserError, "data.train: 'x' is not there; correct it", "data.train")
    assert again.exit_status == 2
    assert str(pickle.loads(pickle.dumps(RunError("it failed")))) == "it failed"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("  two\n\twords ", "two words"),
        (ValueError("no such\n\n   thing"), "no such thing"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (KeyError("size"), "'size'"),
        (TimeoutError(), "TimeoutError"),
        (RuntimeError(" \n "), "RuntimeError"),
        ("", ""),
    ],
)
def test_whitespace_becomes_one_space_and_a_silent_error_is_called_by_its_class(
    error: BaseException | str, line: str
) -> None:
    assert one_line(error) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("size"), "KeyError: 'size'"),
        (RuntimeError("bad"), "RuntimeError: bad"),
        (ValueError("a sentence"), "a sentence"),
        (FileNotFoundError(2, "gone"), "[Errno 2] gone"),
        (Exception("bare"), "bare"),
        (RuntimeError(), "RuntimeError"),
        ("text", "text"),
    ],
)
def test_the_kind_is_named_where_it_says_more(error: BaseException | str, line: str) -> None:
    assert one_line(error, kind=True) == line


def test_what_is_too_long_ends_in_an_ellipsis_and_has_at_most_so_many_characters() -> None:
    assert one_line("x" * LONGEST) == "x" * LONGEST
    assert one_line(ValueError("x" * (LONGEST + 1))) == "x" * (LONGEST - 3) + "..."
    assert one_line("abc defgh", 7) == "abc..."  # no blank before the ellipsis
    assert one_line("x" * 5000, None) == "x" * 5000
    assert [len(one_line("x" * 9, limit)) for limit in range(6)] == [0, 1, 2, 3, 4, 5]


def test_the_lines_of_a_message_are_those_that_say_something() -> None:
    assert message_lines(RuntimeError("Traceback:\n  File x\n\nValueError: bad  \n")) == [
        "Traceback:",
        "  File x",
        "ValueError: bad",
    ]
    assert message_lines(RuntimeError("\n")) == ["RuntimeError"]


def test_nobody_else_puts_an_error_on_one_line() -> None:
    copies = re.compile(r"""["'] ["']\.join\(str\(|def _?one_line|str\(error\)\.split""")
    found = [
        str(file.relative_to(ROOT))
        for package in ("uld_ds", "launcher")
        for file in sorted((ROOT / package).rglob("*.py"))
        if copies.search(file.read_text(encoding="utf-8"))
    ]
    assert found == ["uld_ds/errors.py"]
