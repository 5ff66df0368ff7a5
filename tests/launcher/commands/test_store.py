"""``uld-ds store`` on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launcher import cli
from launcher.drivers.store import with_absolute_store
from tests.helpers.stored_talks import TALKS, side, store_of
from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, toy
from uld_ds.recipe import parse_recipe

PROGRAM = [sys.executable, "-m", "launcher"]


Outcome = tuple[str, str]
Run = Callable[..., Outcome]


def as_a_process(*arguments: str) -> Outcome:
    """Standard output and error of the program as a process of its own."""
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process, which has imported what it needs: standard output and error."""

    def run_main(*arguments: str, status: int = 0) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["uld-ds", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        written = capfd.readouterr()
        assert int(caught.value.code or 0) == status, written.err
        return written.out, written.err

    return run_main


INFO = {
    "examples",
    "teacher_tokens",
    "bytes_per_token",
    "mean_relative_error",
    "gradient_cosine",
    "teacher",
    "tokenizer_digest",
    "data_digest",
    "codec",
    "top_ids",
    "top_bytes_per_token",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "s"
    store_of(folder, side(toy("bc", chat_template=CHAT_TEMPLATE)), TALKS)
    return folder


def test_info_as_json(place: Path) -> None:
    # As a process of its own: what it imports may say nothing either.
    out, err = as_a_process("store", "info", str(place), "--json", "--verify")
    facts = json.loads(out)
    assert facts.keys() >= INFO
    assert (facts["examples"], facts["teacher"], facts["codec"]["version"]) == (4, "t", 2)
    assert facts["teacher_tokens"] == 44
    assert facts["bytes_per_token"] > 0
    assert (facts["top_ids"], facts["top_bytes_per_token"]) == (0, 0.0)
    assert err == ""


def test_info_for_people(place: Path, run: Run) -> None:
    lines = run("store", "info", str(place))[0].splitlines()
    assert lines[0] == str(place)
    assert "  examples             4" in lines
    assert "  teacher tokens       44" in lines


@pytest.mark.parametrize("what", ["nothing", "half", "damaged"])
def test_what_is_no_store(place: Path, tmp_path: Path, what: str, run: Run) -> None:
    if what == "nothing":
        _, err = run("store", "info", str(tmp_path / "x"), status=2)
        assert err.startswith(f"error: PATH: no spectrum store at {tmp_path / 'x'}; ")
        return
    for file in place.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    if what == "half":
        (tmp_path / "manifest.json").rename(tmp_path / "manifest.partial.json")
        _, err = run("store", "info", str(tmp_path), status=2)
        assert "is half-written" in err
        return
    shard = sorted(tmp_path.glob("shard-*"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    _, err = run("store", "info", str(tmp_path), "--verify", status=1)
    assert err.startswith("error: ") and shard.name in err
    assert len(err.splitlines()) == 1


def test_build_needs_a_place_and_a_teacher(tiny_recipe: dict[str, Any], tmp_path: Path, run: Run) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    _, err = run("store", "build", str(recipe), status=2)
    assert err.startswith("error: teacher.path: is missing; name the folder or URL to build the store at")
    _, err = run("store", "build", str(recipe), "--output", "x", "--set", "teacher.model=null", status=2)
    assert "teacher.model is missing" in err


@pytest.mark.slow
def test_a_killed_build_ends_in_the_same_bytes_and_teaches(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    # Enough text for some shards.
    train = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    numbered = [{**row, "prompt": f"{number}: {row['prompt']}"} for number in range(40) for row in rows]
    train.write_text("".join(json.dumps(row) + "\n" for row in numbered))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    facts = json.loads(
        as_a_process("store", "build", str(recipe), "--output", str(whole), "--json")[0].splitlines()[-1]
    )
    assert facts["examples"] == 40 * 48
    assert facts["bytes_per_token"] <= 128

    command = [*PROGRAM, "store", "build", str(recipe), "--output", str(killed)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(killed.glob("shard-*"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, "it was over before it could be killed"
    for member in [process, *psutil.Process(process.pid).children(recursive=True)]:
        os.kill(member.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "manifest.json").exists()
    as_a_process("store", "build", str(recipe), "--output", str(killed))
    for file in sorted(whole.glob("shard-*")):
        assert (killed / file.name).read_bytes() == file.read_bytes()
    assert len(list(killed.glob("shard-*"))) == len(list(whole.glob("shard-*")))

    arguments = ["--set", "teacher.source=stored", "--set", f"teacher.path={killed}", "--set", "teacher.model=null"]
    trained = json.loads(as_a_process("train", str(recipe), *arguments, "--json")[0].splitlines()[-1])
    assert trained["bits_per_byte"]["after"] < trained["bits_per_byte"]["before"]
    assert trained["bits_per_byte"]["teacher"] > 0


def test_workers_find_a_store_that_was_named_from_here(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def place(path: str | None) -> str | None:
        teacher = tiny_recipe["teacher"] if path is None else tiny_recipe["teacher"] | {"path": path}
        return with_absolute_store(parse_recipe(tiny_recipe | {"teacher": teacher})).teacher.path

    assert place("stores/large") == str(tmp_path / "stores" / "large")
    assert place("~/stores") == str(Path("~/stores").expanduser())
    assert place("/stores") == "/stores"
    assert place("s3://bucket/stores") == "s3://bucket/stores"
    assert place(None) is None


def test_of_several_teachers_one_must_be_named(run: Run, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tree = {key: value for key, value in tiny_recipe.items() if key != "teacher"}
    stored = {"name": "code", "source": "stored", "path": "s"}
    tree["teachers"] = [tiny_recipe["teacher"] | {"name": "general"}, stored]
    (recipe := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    names = "name one with --teacher: general, code"
    for verb in (["store", "build"], ["generate"]):
        _, err = run(*verb, str(recipe), status=2)
        assert f"--teacher: is missing: the recipe has 2 teachers; {names}" in err
        _, err = run(*verb, str(recipe), "--teacher", "x", status=2)
        assert f"--teacher: 'x' is no teacher of the recipe; {names}" in err
    # A teacher whose outputs are read from a store is asked, too, where it is known.
    _, err = run("store", "build", str(recipe), "--teacher", "code", status=2)
    assert "teachers.code: teacher.model is missing: source 'online' needs it" in err
    _, err = run("store", "build", str(recipe), "--teacher", "general", status=2)
    assert "teachers.general.path: is missing; name the folder or URL" in err
