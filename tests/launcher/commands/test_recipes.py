"""`uld-ds recipes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.commands.recipes import shipped_recipes
from uld_ds.errors import UserError

RUNNER = CliRunner()
PURPOSE = "A real teacher, a small student with another tokenizer, on a laptop without a GPU."


def test_list() -> None:
    result = RUNNER.invoke(app, ["recipes", "list"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    column = lines[0].index(PURPOSE)
    assert lines[0] == f"{'demo':{column}}{PURPOSE}"
    # The longest name, too, stands apart from its purpose, and all of these begin in one column.
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)
    result = RUNNER.invoke(app, ["recipes", "list", "--json"])
    assert json.loads(result.stdout)["demo"] == PURPOSE


def test_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RUNNER.invoke(app, ["recipes", "copy", "demo"]).stdout == "demo.yaml\n"
    assert (tmp_path / "demo.yaml").read_text() == shipped_recipes()["demo"]
    assert RUNNER.invoke(app, ["recipes", "copy", "demo", "mine.yaml"]).stdout == "mine.yaml\n"
    assert (tmp_path / "mine.yaml").read_text() == shipped_recipes()["demo"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonesuch"], "NAME: no recipe 'nonesuch'; choose one of demo"),
        (["demo", "there.yaml"], "TARGET: 'there.yaml' exists; choose another file"),
        (["demo", "no/folder/x.yaml"], "TARGET: no folder 'no/folder'; make it, or choose another file"),
    ],
)
def test_what_cannot_be_copied(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("mine")
    error = RUNNER.invoke(app, ["recipes", "copy", *arguments]).exception
    assert isinstance(error, UserError)
    assert str(error).startswith(expected)
    assert (tmp_path / "there.yaml").read_text() == "mine"
