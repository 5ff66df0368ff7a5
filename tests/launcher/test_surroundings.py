"""Strange surroundings: locales, home folders, names of folders, what others broke. Errors are one line, in each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import cli
from tests.helpers.run_folders import finished_run

ROOT = Path(__file__).parents[2]
# An encoding without most characters. (That of files is ASCII: real Latin-1 locales are seldom installed.)
LATIN_1 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1:strict"}
# Nobody can write there, not even the superuser.
NO_HOME = {"HOME": "/dev/null/nobody"}


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ULD_DS_", "HF_HOME", "MLFLOW_"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "100", **variables}
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="latin-1",
        timeout=280,
        check=False,
    )


def test_a_run_is_shown_and_reported_in_latin_1(tmp_path: Path) -> None:
    finished_run(tmp_path)
    shown = run(tmp_path, "status", "first", **LATIN_1)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "####" in shown.stdout and "\\u" not in shown.stdout
    assert "█" in run(tmp_path, "status", "first", LC_ALL="C.UTF-8").stdout.encode("latin-1").decode()
    written = run(tmp_path, "report", "first", **LATIN_1)
    assert (written.returncode, written.stderr) == (0, "")
    there = (tmp_path / "first" / "report.html").read_bytes()
    run(tmp_path, "report", "first", "--output", "again.html", LC_ALL="C.UTF-8")
    assert there == (tmp_path / "again.html").read_bytes()
    # What the encoding does not have is written by its number.
    (tmp_path / "first").rename(tmp_path / "日")
    shown = run(tmp_path, "report", "日", **LATIN_1)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == r"\udce6\udc97\udca5/report.html" + "\n"


@pytest.fixture
def recipe(tmp_path: Path, tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    return tiny_recipe


def write(folder: Path, recipe: dict[str, Any]) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return "recipe.yaml"


@pytest.mark.slow
def test_a_whole_run_without_a_home_in_latin_1_in_a_folder_that_reads_like_an_address(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    storage = tmp_path / "a%20b?c"
    recipe["run"]["storage"] = str(storage)
    recipe["registry"] = {}
    done = run(tmp_path, "train", write(tmp_path, recipe), **LATIN_1, **NO_HOME)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "warning" not in done.stderr
    assert (storage / "mlflow.db").is_file() and not list(tmp_path.glob("*.db"))
    assert "<html" in (storage / "tiny" / "report.html").read_text(encoding="utf-8")


# ---- a fuzz of the whole command line


SURROUNDINGS = [
    *("as usual", "latin-1", "no home", "cache is a file", "no tracking server", "a tracking address that is none"),
    *("no cluster", "a bad variable", "no terminal"),
]
BREAKAGES = [
    *("nothing", "a template with a TypeError", "a template that is none", "generation options that contradict"),
    *("generation options of another type", "a configuration that is none", "a tokenizer that is none"),
    *("a tokenizer's settings that are none", "no rows", "rows of other things", "dates", "bytes"),
    *("a table that is none", "storage is a file", "storage reads like an address", "an experiment without a name"),
]


def surroundings(folder: Path) -> dict[str, dict[str, str]]:
    """Variables of the process, by a name."""
    (folder / "file").write_text("")
    return {
        "as usual": {},
        "latin-1": LATIN_1,
        "no home": NO_HOME,
        "cache is a file": {"ULD_DS_CACHE": str(folder / "file"), "HF_HOME": str(folder / "file")},
        "no tracking server": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        "a tracking address that is none": {"MLFLOW_TRACKING_URI": "nonsense://x"},
        "no cluster": {"RAY_ADDRESS": "127.0.0.1:9"},
        "a bad variable": {"ULD_DS__TRAINING__STEPS": "12:30:00"},
        "no terminal": {"TERM": "", "COLUMNS": "x"},
    }


def breakages(tree: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Recipes in which something is broken, by a name."""

    def model(name: str, file: str, content: str | bytes) -> dict[str, Any]:
        place = folder / name
        shutil.copytree(tree["student"]["model"], place)
        (place / file).write_bytes(content.encode() if isinstance(content, str) else content)
        return {**tree, "student": {**tree["student"], "model": str(place)}}

    def data(name: str, content: str | bytes) -> dict[str, Any]:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return {**tree, "data": {"train": {"source": "files", "path": str(folder / name)}}}

    dates = "".join(json.dumps({"prompt": "q", "answer": f"2024-01-{day:02}"}) + "\n" for day in range(1, 25))
    return {
        "nothing": tree,
        "a template with a TypeError": model("m1", "chat_template.jinja", "{{ messages[0]['content'] + 1 }}"),
        "a template that is none": model("m2", "chat_template.jinja", "{% if %}"),
        "generation options that contradict": model("m3", "generation_config.json", '{"num_return_sequences": 2}'),
        "generation options of another type": model("m4", "generation_config.json", "[1]"),
        "a configuration that is none": model("m5", "config.json", "[]"),
        "a tokenizer that is none": model("m6", "tokenizer.json", "{}"),
        "a tokenizer's settings that are none": model("m7", "tokenizer_config.json", '["x"]'),
        "no rows": data("none.jsonl", ""),
        "rows of other things": data("odd.jsonl", '{"prompt": 7}\n[1]\nnull\n'),
        "dates": data("dates.jsonl", dates),
        "bytes": data("bytes.jsonl", bytes(range(256))),
        "a table that is none": data("none.parquet", "PAR1"),
        "storage is a file": {**tree, "run": {"name": "x", "storage": str(folder / "file")}},
        "storage reads like an address": {**tree, "run": {"name": "x", "storage": str(folder / "a%20b?mode=ro")}},
        "an experiment without a name": {**tree, "tracking": {"experiment": ""}},
    }


VERBS = {
    "train": ["train", "recipe.yaml"],
    "dry run": ["train", "recipe.yaml", "--dry-run"],
    "plan": ["plan", "recipe.yaml", "--on", "cpu"],
    "status": ["status", "first"],
    "report": ["report", "first"],
    "compare": ["compare", "first", "first", "--html", "both.html"],
    "align": ["align", "--student", "{model}", "--teacher", "{model}", "--text", "né → ß"],
    "evaluate": ["evaluate", "{model}", "recipe.yaml"],
    "generate": ["generate", "recipe.yaml", "--set", "teacher.model=./nowhere"],
    "store build": ["store", "build", "recipe.yaml", "--set", "teacher.model=./nowhere"],
    "store info": ["store", "info", "first"],
    "lineage": ["lineage", "m/1"],
    "promote": ["promote", "m", "1", "--alias", "a"],
    "jobs": ["jobs", "--address", "http://127.0.0.1:9"],
    "score": ["score", "first/progress.jsonl"],
    "recipes": ["recipes", "list"],
    "env": ["env"],
}
# What would go on to train, evaluate or import everything: too long for each of these.
TOO_LONG = {
    ("train", "nothing"),
    ("train", "dates"),
    ("train", "storage reads like an address"),
    ("evaluate", "nothing"),
}


OF_RECIPE = [name for name, words in VERBS.items() if "recipe.yaml" in words]


def fault(status: int, out: str, err: str) -> str | None:
    """What is wrong with an end of the program: a traceback, or a failure that no line tells."""
    last = (err.rstrip().splitlines() or [""])[-1]
    is_told = status == 0 or last.startswith("error: ")
    return None if status in (0, 1, 2) and "Traceback" not in out + err and is_told else f"{status}\n{err[-1500:]}"


@pytest.mark.slow
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_no_traceback_whatever_is_broken(
    tmp_path: Path,
    recipe: dict[str, Any],
    breakage: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process: its imports take longer than all else."""
    monkeypatch.chdir(tmp_path)
    finished_run(tmp_path)
    surroundings(tmp_path)
    broken = breakages(recipe, tmp_path)[breakage]
    write(tmp_path, broken)
    found = {}
    for verb in OF_RECIPE:
        if (verb, breakage) not in TOO_LONG:
            monkeypatch.setattr(sys, "argv", ["uld-ds", *words_of(verb, broken)])
            capfd.readouterr()
            with pytest.raises(SystemExit) as caught:
                cli.main()
            found[verb] = fault(int(caught.value.code or 0), *capfd.readouterr())
    assert found == dict.fromkeys(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_no_traceback_whatever_is_around(tmp_path: Path, recipe: dict[str, Any], surrounding: str) -> None:
    finished_run(tmp_path)
    around = surroundings(tmp_path)[surrounding]
    broken = breakages(recipe, tmp_path)["a template with a TypeError"]
    write(tmp_path, broken)
    found = {}
    for verb in VERBS:
        done = run(tmp_path, *words_of(verb, broken), **around)
        found[verb] = fault(done.returncode, done.stdout, done.stderr)
    assert found == dict.fromkeys(found)


def words_of(verb: str, recipe: dict[str, Any]) -> list[str]:
    return [word.replace("{model}", recipe["student"]["model"]) for word in VERBS[verb]]
