"""The cache of converted models: where it is, and that it never holds half of anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from uld_ds.utils.cache import build_once, cache_dir


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("ULD_DS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "uld-ds"


def test_build_once(tmp_path: Path) -> None:
    target, calls = tmp_path / "deep" / "target", []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "content").write_text("whole")

    assert build_once(target, build) == build_once(target, build) == target
    assert len(calls) == 1
    assert calls[0] != target
    assert (target / "content").read_text() == "whole"
    assert [item.name for item in target.parent.iterdir()] == ["target"]


def test_build_once_leaves_nothing_half_made(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "content").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        build_once(tmp_path / "target", build)
    assert list(tmp_path.iterdir()) == []


def test_build_once_accepts_that_another_was_faster(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def build(folder: Path) -> None:
        (folder / "content").write_text("mine")
        target.mkdir()
        (target / "content").write_text("theirs")

    assert build_once(target, build) == target
    assert (target / "content").read_text() == "theirs"
    assert [item.name for item in tmp_path.iterdir()] == ["target"]
