"""``uld-ds compare`` on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import cli
from launcher.terminal.find_run import find_run
from tests.helpers.run_folders import make_run
from uld_ds.reporting.comparison import BITS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: exit status, standard output, standard error."""

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uld-ds", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return run_main


def test_the_command(tmp_path: Path, run: Run) -> None:
    places = [str(make_run(tmp_path, name, bits=bits)) for name, bits in (("a", 2.5), ("b", 2.4))]
    page = tmp_path / "page.html"
    status, out, err = run("compare", *places, "--html", str(page), "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert [run["scores"][BITS]["value"] for run in facts["runs"]] == [2.5, 2.4]
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "name two runs or more"),
        (["a", "nothing"], "no run at"),
        (["a", "b", "--html", "no/such/page.html"], "--html: no folder"),
    ],
)
def test_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, arguments: list[str], said: str) -> None:
    for name in ("a", "b"):
        make_run(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    assert find_run("a").name == "a"
    status, _, err = run("compare", *arguments)
    assert status == 2
    assert said in err
