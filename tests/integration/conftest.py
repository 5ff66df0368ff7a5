"""What whole runs share: a server that answers as an inference engine does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.engine_server import TOKEN, EngineServer


@pytest.fixture
def server(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineServer]:
    """A server with the tiny teacher that wants a token, which the environment has."""
    monkeypatch.setenv("ULD_DS_TEACHER_TOKEN", TOKEN)
    with EngineServer(tiny_teacher, token=TOKEN) as running:
        yield running
