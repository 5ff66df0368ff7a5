"""Files of a spectrum store appear whole or not at all, wherever they are."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from tests.helpers.stores import contents
from uld_ds.teachers.store.files import StoreFiles


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = StoreFiles(tmp_path)
    files.put("a", b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        files.put("a", b"new")
    assert contents(tmp_path) == {"a": b"old"}


def test_a_file_system_without_atomic_puts_gets_a_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = StoreFiles(f"dir::file://{tmp_path}")
    moves: list[str] = []
    mv = type(files._fs).mv
    monkeypatch.setattr(type(files._fs), "mv", lambda self, a, b: (moves.append(b), mv(self, a, b)))
    files.put("a", b"new")
    assert [move.rsplit("/", 1)[1] for move in moves] == ["a"]
    assert files.names() == ["a"] and files.read("a") == b"new" and files.read("b") is None


def test_an_object_store_gets_one_put_and_no_rename() -> None:
    files = StoreFiles("memory://one-put")
    files.put("a", b"1")
    assert fsspec.filesystem("memory").find("/one-put") == ["/one-put/a"]
