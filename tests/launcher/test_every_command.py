"""What holds for every verb: help in groups, exit statuses, errors of one line, no escape codes, JSON alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from launcher import cli
from launcher.commands.options import OUTPUT
from tests.helpers.run_folders import finished_run

Outcome = tuple[int, str, str]
Call = Callable[..., Outcome]


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb that does something."""
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, child in command.commands.items():
        yield from leaves(child, (*words, name))


COMMANDS = dict(leaves(typer.main.get_command(cli.app)))
# A document is not facts.
WITHOUT_JSON = {("recipes", "reference")}
WITHOUT_ARGUMENTS = {("recipes", "reference"), ("recipes", "list"), ("jobs",), ("env",)}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the program in this process, where no output is a terminal: exit status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)

    def run_main(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["uld-ds", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        written = capfd.readouterr()
        assert "\x1b" not in written.out + written.err
        assert "Traceback" not in written.err
        return int(caught.value.code or 0), written.out, written.err

    return run_main


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run with everything in its folder."""
    return finished_run(tmp_path)


def all_verbs(**options: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("words", list(COMMANDS), ids=" ".join, **options)


@all_verbs()
def test_help(call: Call, words: tuple[str, ...]) -> None:
    status, out, err = call(*words, "--help")
    assert (status, err) == (0, "")
    assert f"Usage: uld-ds {' '.join(words)} " in out
    panels = {
        name: getattr(option, "rich_help_panel", None) for option in COMMANDS[words].params for name in option.opts
    }
    assert ("--json" not in panels) == (words in WITHOUT_JSON)
    assert {panels[name] for name in ("--json", "--html", "--output") if name in panels} <= {OUTPUT}


@all_verbs()
def test_wrong_use_is_status_2(call: Call, words: tuple[str, ...]) -> None:
    status, out, err = call(*words, "--nonesuch")
    assert (status, out) == (2, "")
    assert "No such option: --nonesuch" in err
    if words not in WITHOUT_ARGUMENTS:
        status, out, err = call(*words)
        assert (status, out) == (2, "")
        assert "Missing " in err


# A word or words that each verb cannot do anything with, and how its error begins.
REFUSED: dict[tuple[str, ...], list[tuple[list[str], str]]] = {
    ("train",): [
        (["none.yaml"], "recipe: no file 'none.yaml'; "),
        (["list.yaml"], "recipe: 'list.yaml' holds a list; "),
        (["x" * 300], "xxxxx"),
    ],
    ("plan",): [(["none.yaml"], "recipe: no file 'none.yaml'; "), (["binary"], "recipe: 'binary' is not YAML (")],
    ("status",): [(["none"], "RUN: no run at 'none'; "), (["~nobody"], "RUN: no run at '~nobody'; ")],
    ("report",): [
        (["none"], "RUN: no run at 'none'; "),
        (["first", "--output", "."], "--output: '.' is a folder; "),
        (["first", "--output", "no/x.html"], "--output: no folder 'no'; "),
        (["first", "--output", "x" * 300], f"--output: cannot write '{'x' * 300}' (File name too long); "),
    ],
    ("submit",): [(["none.yaml", "--address", "http://127.0.0.1:9"], "recipe: no file 'none.yaml'; ")],
    ("jobs",): [
        (["--address", "nonsense"], "--address: 'nonsense' is no http:// or https:// URL; "),
        (["--address", "http://127.0.0.1:9"], "--address: nobody answers at 'http://127.0.0.1:9'; "),
    ],
    ("compare",): [
        (["first"], "RUN: only 'first' to compare; "),
        (["first", "~nobody"], "RUN: no run at '~nobody'; "),
        (["first", "first", "--html", "no/x.html"], "--html: no folder 'no'; "),
    ],
    ("align",): [
        (["--student", "./none", "--teacher", "./none", "--text", "x"], "--student: no file or folder './none'; "),
        (["--student", "./none", "--teacher", "./none"], "--text: there is no text; "),
        (["--student", "a", "--teacher", "b", "--text", "x", "--html", "no/x.html"], "--html: no folder 'no'; "),
    ],
    ("recipes", "list"): [],
    ("recipes", "reference"): [],
    ("recipes", "copy"): [
        (["none"], "NAME: no recipe 'none'; "),
        (["demo", "binary"], "TARGET: 'binary' exists; "),
        (["demo", "x" * 300], f"TARGET: cannot write '{'x' * 300}' (File name too long); "),
    ],
    ("store", "build"): [(["none.yaml"], "recipe: no file 'none.yaml'; ")],
    ("store", "info"): [
        (["none"], "PATH: no spectrum store at none; "),
        (["binary"], "PATH: no spectrum store at binary; "),
        (["nosuch://x"], "PATH: 'nosuch://x' cannot be reached (Protocol not known: nosuch); "),
    ],
    ("generate",): [(["none.yaml"], "recipe: no file 'none.yaml'; ")],
    ("evaluate",): [(["first", "none.yaml"], "recipe: no file 'none.yaml'; ")],
    ("score",): [(["none"], "PREDICTIONS: cannot read 'none' ("), (["binary"], "PREDICTIONS: cannot read 'binary' (")],
    ("promote",): [
        (["m", "1", "--alias", "a"], "--tracking-uri: is missing; "),
        (["m", "1", "--alias", "a", "--force"], "--force: has no reason; "),
    ],
    ("env",): [],
    ("lineage",): [(["m"], "NAME@ALIAS: 'm' is neither NAME@ALIAS nor NAME/VERSION; ")],
}


@all_verbs()
@pytest.mark.usefixtures("finished")
def test_what_cannot_be_done_is_one_line_and_status_2(call: Call, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0\1")
    (tmp_path / "list.yaml").write_text("- 1\n")
    for given, begins in REFUSED[words]:
        status, out, err = call(*words, *given)
        assert (status, out) == (2, ""), err
        assert err.startswith(f"error: {begins}"), err
        assert err.count("\n") == 1


def test_what_cannot_be_reached_is_status_1(call: Call) -> None:
    status, out, err = call("store", "info", "http://127.0.0.1:9/store")
    assert (status, out) == (1, "")
    assert err.startswith("error: PATH: 'http://127.0.0.1:9/store' cannot be read (")
    assert err.endswith("; see that this machine reaches it\n")


# ---- --json: the keys that scripts read are there, and nothing else is on standard output


@pytest.fixture
def recipe(tmp_path: Path, tiny_recipe: dict[str, Any]) -> Path:
    (file := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe))
    return file


JSON: dict[tuple[str, ...], tuple[list[str], set[str]]] = {
    ("train",): (["recipe.yaml", "--dry-run"], {"run", "teacher", "student", "data", "objective", "training"}),
    ("plan",): (["recipe.yaml", "--on", "cpu"], {"fits", "device_peak_bytes", "seconds", "traffic_bytes"}),
    ("status",): (["first"], {"name", "state", "step", "total_steps", "loss", "phase_shares", "restarts"}),
    ("report",): (["first"], {"report"}),
    ("compare",): (["first", "first", "--html", "both.html"], {"runs", "cautions"}),
    ("align",): (["--student", "{student}", "--teacher", "{teacher}", "--text", "né"], {"segments", "alignment_rate"}),
    ("recipes", "list"): ([], {"demo", "paper"}),
    ("recipes", "copy"): (["demo", "mine.yaml"], {"recipe"}),
    ("score",): (["answers.jsonl"], {"f1", "em", "rows", "unanswerable"}),
    ("env",): ([], {"uld_ds", "python", "libraries", "machine", "torch", "environment", "cache"}),
}


@pytest.fixture(autouse=True)
def _few_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """``uld-ds env`` would import all of them; tests/launcher/commands/test_env.py has those."""
    monkeypatch.setattr("launcher.drivers.bug_report.LIBRARIES", ("numpy",))
    monkeypatch.setattr("launcher.drivers.bug_report.EXTRAS", {})


@pytest.mark.parametrize("words", list(JSON), ids=" ".join)
@pytest.mark.usefixtures("finished", "recipe")
def test_json_is_alone_on_standard_output(
    call: Call, words: tuple[str, ...], tmp_path: Path, tiny_student: Path, tiny_teacher: Path
) -> None:
    (tmp_path / "answers.jsonl").write_text('{"prediction_text": "a", "answers": ["a"]}\n')
    given, keys = JSON[words]
    places = [word.format(student=tiny_student, teacher=tiny_teacher) for word in given]
    status, out, err = call(*words, *places, "--json")
    assert status == 0, err
    assert out.count("\n") == 1
    assert json.loads(out).keys() >= keys
    for value in json.loads(out).values():
        if words in {("report",), ("recipes", "copy")}:
            assert Path(value).is_file()


# ---- completion


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("uld-ds st", {"status", "store"}),
        ("uld-ds recipes copy d", {"demo"}),
        ("uld-ds train r.yaml --d", {"--dry-run"}),
    ],
)
def test_completion(call: Call, monkeypatch: pytest.MonkeyPatch, words: str, found: set[str]) -> None:
    monkeypatch.setenv("_ULD_DS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    status, out, err = call()
    assert (status, err) == (0, "")
    assert set(out.split()) == found
