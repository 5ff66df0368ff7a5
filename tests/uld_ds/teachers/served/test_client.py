"""The client against a server that fails: what is made again, what is not, and what is never said."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.engine_server import TRANSIENT, EngineServer
from uld_ds.recipe import ServerSettings
from uld_ds.teachers.served.client import Client, GoneError, RefusedError, seconds_after
from uld_ds.teachers.served.engine import ServedEngine

TOKEN = "hunter22-hunter22"
IDS = [5, 9, 17, 300, 2, 4]


def settings(url: str, **changes: Any) -> ServerSettings:
    return ServerSettings.model_validate({"url": url, "api": "vllm", "top": 8} | changes)


@contextmanager
def engine_of(server: EngineServer, token: str | None = None, **changes: Any) -> Iterator[ServedEngine]:
    changed = settings(server.url, api=server.api, **changes)
    engine = ServedEngine(Client(changed, token, first_delay=0.01), changed, "teacher", 600)
    try:
        yield engine
    finally:
        engine.close()


def score(engine: ServedEngine, ids: list[int] = IDS) -> Future[Any]:
    return engine.score(ids, np.arange(1, len(ids)))


@pytest.fixture
def server(tiny_teacher: Path) -> Iterator[EngineServer]:
    with EngineServer(tiny_teacher) as running:
        yield running


@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_passes_is_asked_again(server: EngineServer, fault: str) -> None:
    server.fault = lambda number: fault if number < 3 else None
    with engine_of(server) as engine:
        found = score(engine).result(30)
    server.fault = lambda _number: None
    with engine_of(server) as engine:
        undisturbed = score(engine).result(30)
    assert np.array_equal(found.top, undisturbed.top) and np.array_equal(found.ids, undisturbed.ids)
    # A slow reply is a reply.
    assert server.faults == ([fault] if fault == "delay" else [fault] * 3)
    assert server.scored == [IDS] * (2 if fault == "delay" else 5)


def test_a_reply_that_takes_too_long_is_asked_for_again(server: EngineServer) -> None:
    server.fault = lambda number: "delay" if number < 2 else None
    with engine_of(server, timeout=0.2) as engine:
        score(engine).result(30)
    assert len(server.scored) == 3


def test_what_a_server_refuses_is_not_asked_again_and_its_words_are_told(server: EngineServer) -> None:
    server.fault = lambda _number: "400"
    with engine_of(server) as engine, pytest.raises(RefusedError, match="the engine does not like this one") as caught:
        score(engine).result(30)
    assert len(server.scored) == 1
    assert str(caught.value) == (
        f"the teacher's server at {server.url} refuses a request (400): the engine does not like this one"
    )


def test_a_server_that_is_gone_for_longer_than_patience_ends_it(server: EngineServer) -> None:
    with engine_of(server, patience=0.3) as engine:
        score(engine).result(30)
        server.stop()
        begin = time.monotonic()
        with pytest.raises(GoneError) as caught:
            score(engine).result(30)
    assert 0.3 <= time.monotonic() - begin < 10
    assert "which is teacher.server.patience 0.3" in str(caught.value)
    assert "the last checkpoint is good" in str(caught.value)


def test_a_server_that_comes_back_in_time_is_asked_on(server: EngineServer, caplog: pytest.LogCaptureFixture) -> None:
    with engine_of(server, patience=30) as engine, caplog.at_level(logging.WARNING):
        score(engine).result(30)
        server.stop()
        pending = score(engine)
        time.sleep(0.3)
        assert not pending.done()
        server.start()
        pending.result(30)
    # Said once when it goes, and once when it is back.
    assert len(caplog.records) == 2
    assert caplog.records[0].message.endswith("; it is asked again")
    assert f"{server.url} answers again, after" in caplog.records[1].message


def test_a_busy_server_is_not_gone_while_it_answers_others(server: EngineServer) -> None:
    # This text is told to wait for longer than anybody waits for a server that is gone.
    begin = time.monotonic()
    server.is_too_much = lambda ids: ids == IDS and time.monotonic() - begin < 1.5
    with engine_of(server, patience=0.5) as engine:
        busy = score(engine)
        while not busy.done():
            score(engine, [*IDS, 7]).result(30)
        busy.result()
    assert time.monotonic() - begin >= 1.5


def test_how_long_a_server_wants_to_be_left_alone(server: EngineServer) -> None:
    for header, seconds in ((None, 0.0), ("3", 3.0), ("soon", 0.0), ("-4", 0.0)):
        assert seconds_after(header) == seconds
    assert 8 < seconds_after(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert seconds_after(formatdate(0, usegmt=True)) == 0
    server.fault = lambda number: "429" if number == 0 else None
    server.retry_after = "1"
    with engine_of(server) as engine:
        begin = time.monotonic()
        score(engine).result(30)
    assert time.monotonic() - begin >= 1


def test_requests_and_tokens_under_way_are_bounded(server: EngineServer) -> None:
    server.fault = lambda _number: "delay"
    texts = [[*IDS, number] for number in range(12)]
    with engine_of(server, concurrency=3) as engine:
        for future in [score(engine, text) for text in texts]:
            future.result(60)
    assert server.most_requests == 3 and server.most_tokens == 21
    # In the order in which they were asked for, and over connections that stay open.
    assert server.num_connections == 3
    assert [sorted(server.scored[first : first + 3]) for first in range(0, 12, 3)] == [
        texts[first : first + 3] for first in range(0, 12, 3)
    ]


@pytest.mark.parametrize(("tokens", "requests"), [(14, 2), (20, 2), (21, 3), (6, 1)])
def test_tokens_under_way_are_bounded(server: EngineServer, tokens: int, requests: int) -> None:
    server.fault = lambda _number: "delay"
    with engine_of(server, concurrency=9, tokens_in_flight=tokens) as engine:
        for future in [score(engine, [*IDS, number]) for number in range(6)]:
            future.result(60)
    # A text that is longer than all of them goes alone.
    assert (server.most_requests, server.most_tokens) == (requests, 7 * requests)


def test_what_is_given_up_leaves_room(server: EngineServer) -> None:
    server.fault = lambda number: "delay" if number < 2 else None
    with engine_of(server, concurrency=1) as engine:
        running, waiting, last = (score(engine, [*IDS, number]) for number in range(3))
        time.sleep(0.05)
        waiting.cancel()
        running.cancel()
        last.result(30)
    assert [ids[-1] for ids in server.scored] == [0, 2]


def test_a_token_is_sent_and_never_told(
    tiny_teacher: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULD_DS_TEACHER_TOKEN", TOKEN)
    with EngineServer(tiny_teacher, token=TOKEN) as server, caplog.at_level(logging.DEBUG):
        said = []
        with engine_of(server, TOKEN, patience=0.1) as engine:
            score(engine).result(30)
            for fault in ("400", "503", "cut", "reset", "torn"):
                server.fault = lambda _number, fault=fault: fault  # type: ignore[misc]
                with pytest.raises((RefusedError, GoneError)) as caught:
                    score(engine).result(30)
                said += [str(caught.value), repr(caught.value), repr(caught.value.__context__)]
        with engine_of(server, "wrong-token") as engine, pytest.raises(RefusedError, match="401") as refused:
            score(engine).result(30)
    said += [str(refused.value), caplog.text]
    assert not any(TOKEN in text or "wrong-token" in text or "Bearer" in text for text in said)


def test_nobody_is_followed_elsewhere(server: EngineServer, tiny_teacher: Path) -> None:
    """A redirection would carry the token to whoever is named there."""
    with EngineServer(tiny_teacher) as other, engine_of(server, TOKEN) as engine:
        server.fault = lambda _number: f"to {other.url}/v1/completions"
        with pytest.raises(RefusedError, match="307"):
            score(engine).result(30)
        assert other.scored == []
