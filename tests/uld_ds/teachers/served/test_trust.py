"""What a served teacher's server is asked before a run, and the one line that each mismatch is."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.engine_server import EngineServer
from tests.helpers.tiny import save_tiny_model, save_tiny_t5
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import NamedTeacherSettings, TeacherSettings
from uld_ds.teachers.served.facts import ServerFacts, UnreachableError, remembered
from uld_ds.teachers.served.trust import examine


def teacher(folder: Path, url: str, *, max_length: int = 256, **server: Any) -> NamedTeacherSettings:
    settings = {"model": str(folder), "source": "served", "max_length": max_length}
    settings["server"] = {"url": url, "api": "vllm", "top": 20} | server
    return NamedTeacherSettings.only(TeacherSettings.model_validate(settings))


def examined(settings: NamedTeacherSettings) -> ServerFacts:
    return examine(settings, Pretrained.from_settings(settings, settings.key, runs=False))


def refused(settings: NamedTeacherSettings) -> str:
    with pytest.raises(UserError) as caught:
        examined(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("api", "title", "precision"), [("vllm", "vLLM", None), ("sglang", "SGLang", "float32")])
def test_who_it_is(tiny_teacher: Path, api: str, title: str, precision: str | None) -> None:
    with EngineServer(tiny_teacher, api=api, version="7.8.9", name="org/large") as server:
        found = examined(teacher(tiny_teacher, server.url, api=api))
        assert found == ServerFacts(title, "7.8.9", "org/large", 20, 600, precision)
        assert examined(teacher(tiny_teacher, f"{server.url}/v1/", api=api, name="org/large")) == found
        # Cheap: the same probe twice, once with options of sampling.
        assert len(server.scored) == 4 and len({tuple(ids) for ids in server.scored}) == 1
        assert server.scored[0][-1] == 599  # the highest id is one of the model
        assert max(map(len, server.scored)) < 200


def test_weights_need_not_be_here(tiny_teacher: Path, tmp_path: Path) -> None:
    for file in tiny_teacher.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with EngineServer(tiny_teacher) as server:
        assert examined(teacher(tmp_path, server.url)).engine == "vLLM"
    with pytest.raises(UserError, match=r"has no \*\.safetensors"):
        Pretrained.from_settings(teacher(tmp_path, "http://x"), "teacher")


CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"max_logprobs": 10},
        {},
        "teacher.server.top: 20 is more than the server tells (Requested prompt logprobs of 20, which is greater than "
        "max allowed: 10 (parameter=prompt_logprobs, value=20)); start it with --max-logprobs 20, or lower it",
    ),
    ({}, {"top": 601}, "teacher.server.top: 601 is more than the 600 ids of the model; lower it"),
    ({}, {"name": "org/small"}, "teacher.server.name: 'org/small' is not there: the server serves teacher; name one"),
    ({"names": ["a", "b"]}, {}, "teacher.server.name: is missing, and the server serves a, b; name one of them"),
    (
        {"max_model_len": 256},
        {},
        "teacher.max_length: 256 is more than the 255 tokens that the server scores at once; start it with "
        "--max-model-len 257 if the model reads as many, or lower it to 255",
    ),
    (
        {"owned_by": "llamacpp"},
        {},
        "is llama.cpp's server, which takes prompt_logprobs and echo and drops them without a word: a text could be "
        "scored only prefix by prefix, a request for each token; serve the model with vLLM or SGLang",
    ),
    ({"owned_by": "sglang"}, {}, "says that it is SGLang; set it to sglang"),
    (
        {"touched": "logits"},
        {},
        "teacher.server: does not tell log-probabilities of the model: a log-probability at token 1 ",
    ),
    ({"touched": "logits"}, {}, "start vLLM with --logprobs-mode raw_logprobs"),
    (
        {"touched": "temperature"},
        {},
        "teacher.server: lets temperature and penalties touch log-probabilities of prompts (they move by ",
    ),
    (
        {"token": "secret-of-a-server"},
        {},
        "refuses to answer (401): Unauthorized; put its token into the environment variable ULD_DS_TEACHER_TOKEN",
    ),
    ({"fault": lambda _number: "dropped"}, {}, "teacher.server: does not score a probe: it has no prompt_logprobs"),
    ({"fault": lambda _number: "400"}, {}, "teacher.server: refuses a probe (400): the engine does not like this one"),
]


@pytest.mark.parametrize(("of_server", "settings", "said"), CASES)
def test_a_mismatch_is_one_line_with_the_fix(
    tiny_teacher: Path, of_server: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    with EngineServer(tiny_teacher, **of_server) as server:
        assert said in refused(teacher(tiny_teacher, server.url, **settings))


def test_a_token_of_ones_own(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULD_DS_TEACHER_TOKEN", "of-another-server")
    monkeypatch.setenv("ULD_DS_TEACHER_TOKEN_MY_CODER", "of-this-server\n")
    with EngineServer(tiny_teacher, token="of-this-server") as server:
        settings = teacher(tiny_teacher, server.url)
        assert "ULD_DS_TEACHER_TOKEN" in refused(settings)
        assert examined(settings.model_copy(update={"name": "my-coder"})).engine == "vLLM"


def test_a_server_of_another_tokenizer(tiny_teacher: Path, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    other = save_tiny_model(tmp_path / "other", rows, kind="unigram", vocab_size=600, seed=3)
    with EngineServer(tiny_teacher, tokenizer=other) as server:
        said = refused(teacher(tiny_teacher, server.url))
    assert said.startswith(f"teacher.model: {str(tiny_teacher)!r} makes ")
    assert "tokens of a probe, and the server's tokenizer" in said and "name the model that the server serves" in said


def test_a_server_of_fewer_ids(tiny_teacher: Path, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    smaller = save_tiny_model(tmp_path / "smaller", rows, kind="bpe", vocab_size=500, seed=3)
    with EngineServer(smaller, tokenizer=tiny_teacher) as server:
        said = refused(teacher(tiny_teacher, server.url))
    assert "has 600 ids, and the server's model fewer (Token id 599 is out of vocabulary); name the model that" in said


def test_an_encoder_is_no_prompt(tiny_teacher: Path, tmp_path: Path) -> None:
    tokenizer = Pretrained(str(tiny_teacher)).tokenizer()
    folder = save_tiny_t5(tmp_path / "t5", tokenizer, seed=1)
    assert "has an encoder, and engines tell log-probabilities of decoders alone" in refused(
        teacher(folder, "http://x")
    )


def test_nobody_there(tiny_teacher: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = refused(teacher(tiny_teacher, f"http://127.0.0.1:{port}"))
    assert said.startswith(f"teacher.server.url: 'http://127.0.0.1:{port}' does not answer (")
    assert said.endswith("; start the server, or correct the URL")


def test_a_server_that_comes_later_is_waited_for(tiny_teacher: Path) -> None:
    server = EngineServer(tiny_teacher)
    with server:
        url = server.url
    settings = teacher(tiny_teacher, url)
    begin = time.monotonic()
    with pytest.raises(UnreachableError):
        examine(settings, Pretrained.from_settings(settings, settings.key, runs=False), wait_seconds=0.5)
    assert 0.5 <= time.monotonic() - begin < 30
    coming = threading.Timer(1.0, server.__enter__)
    coming.start()
    try:
        own = Pretrained.from_settings(settings, settings.key, runs=False)
        assert examine(settings, own, wait_seconds=60).model == "teacher"
    finally:
        coming.join()
        server.__exit__(None, None, None)


def test_what_a_run_began_with(tiny_teacher: Path, tmp_path: Path) -> None:
    settings = teacher(tiny_teacher, "http://x")
    old, new = (ServerFacts("vLLM", version, "m", 20, 600) for version in ("1", "2"))

    asked: list[float] = []

    def gone(seconds: float) -> ServerFacts:
        asked.append(seconds)
        raise UnreachableError("teacher.server.url", "does not answer", "start it")

    with pytest.raises(UnreachableError):
        remembered(settings, gone, tmp_path / "run", wait_seconds=9.0)
    assert remembered(settings, lambda _seconds: old, tmp_path / "run") == old
    assert json.loads((tmp_path / "run" / "server.json").read_text()) == old.to_json()
    # All that the run still needs may be cached.
    assert remembered(settings, gone, tmp_path / "run", wait_seconds=9.0) == old
    assert asked == [9.0, 0.0], "only a run that begins waits"
    with pytest.raises(UserError) as caught:
        remembered(settings, lambda _seconds: new, tmp_path / "run")
    assert str(caught.value) == (
        "teacher.server: is m by vLLM 2, top 20, and the run began with m by vLLM 1, top 20; start that again, or set "
        "another run.name"
    )
    assert remembered(settings, lambda _seconds: new, None) == new
