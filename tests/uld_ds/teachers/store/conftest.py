"""A small spectrum store that tests read, and a copy of it to damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.stores import build, contents


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    build(folder)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    target.mkdir()
    for name, data in contents(built).items():
        (target / name).write_bytes(data)
    return target
