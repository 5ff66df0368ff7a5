"""`uld-ds --help` in groups, its exit statuses, and no color where none is wanted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.terminal.help_panels import OTHERS, PANELS


def test_every_verb_is_in_a_group() -> None:
    infos = [*app.registered_commands, *app.registered_groups]
    assert {info.rich_help_panel for info in infos} <= {*PANELS, OTHERS}
    assert {info.name: info.rich_help_panel for info in infos}["train"] == "A run"
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output
    for panel in {str(info.rich_help_panel) for info in infos}:
        assert f"─ {panel} ─" in text
    assert "--install-completion" in text


@pytest.mark.parametrize("words", [["recipes", "copy", "nonesuch"], ["status", "nowhere"], ["--help"]])
def test_no_color_where_none_is_wanted(words: list[str]) -> None:
    environment = os.environ | {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    code = "from launcher.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == (0 if words == ["--help"] else 2)
    written = done.stdout + done.stderr
    assert written
    for color in ("\x1b[3", "\x1b[9", "\x1b[1;3", "\x1b[38"):
        assert color not in written, written[:200]
