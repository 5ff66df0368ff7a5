"""``uld-ds status``, as a person at another shell types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.commands.status import duration
from launcher.terminal.find_run import find_run
from tests.helpers.run_folders import add_rounds, own_round, running_run
from uld_ds.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps of ten, a checkpoint after the second."""
    return running_run(tmp_path)


def test_a_table(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    found = CliRunner().invoke(app, ["status", "first"], env={"COLUMNS": "110"})
    assert found.exit_code == 0
    facts, phases = found.output.split("time of a step")
    lines = {line.split("  ", 1)[0]: " ".join(line.split()) for line in facts.splitlines()}
    assert lines["first"].startswith("first running, last sign 0 s ago")
    assert lines["progress"] == "progress 3 of 10 (30%), 1 min 10 s left"
    assert lines["loss"] == "loss 2.7000 (cross-entropy 2.6000, ULD 0.2000; 2.500 bits per byte)"
    assert lines["throughput"] == "throughput 300 tokens/s, 10 s per step; 46% of the student's positions are padding"
    assert lines["last checkpoint"] == "last checkpoint step 2, 0 s ago, written in 1.5 s"
    assert lines["restarts"] == "restarts 0"
    assert re.search(r"^teacher +40\.0%  █{10} +teacher's", phases, flags=re.M)
    assert "\x1b" not in found.output


def test_json_and_what_it_costs(run: Path) -> None:
    heavy = "{'torch', 'ray', 'deepspeed', 'mlflow', 'transformers', 'numpy'}"
    code = f"import sys; from launcher.cli import main\ntry: main()\nfinally: print({heavy} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code, "status", str(run), "--json"], capture_output=True, text=True, check=True
    )
    facts, imported = done.stdout.splitlines()
    assert json.loads(facts)["step"] == 3
    assert imported == "set()"


def test_rounds_of_own_answers(run: Path) -> None:
    writer = add_rounds(run / "progress.jsonl", 2, every=2)
    writer.round(own_round(2, 2, ended=0.01, left_out={}), every=2, warnings={"ended": "look", "repeated": "at it"})
    found = CliRunner().invoke(app, ["status", str(run), "--answers"], env={"COLUMNS": "140"})
    assert found.exit_code == 0
    facts, shown = found.output.split("own answers of round 1")
    lines = {line.split("  ", 1)[0]: " ".join(line.split()) for line in facts.splitlines()}
    assert lines["progress"] == "progress 3 of 10 (30%), 1 min 26 s left"
    assert lines["rounds"] == "rounds 3 of 5, 8 s each, 650 tokens/s sampled"
    assert lines["own answers"] == (
        "own answers 100 answers, 1% ended, 38.0 tokens on average, 96% distinct, 4.0% repeated"
    )
    assert lines["KL(student, teacher)"] == (
        "KL(student, teacher) 0.9000 nats per byte in round 1 (1.0000 in round 0); teacher 1.6500, student 0.7500"
    )
    assert (lines["warning"], lines["warning 2"]) == ("warning look", "warning 2 at it")
    assert shown.count("nats per byte  student 0.500, teacher 1.000") == 3
    assert re.search(r"asked +What is 2 <\+> 1\?\s+answered +It is 3\.", shown)
    facts = json.loads(CliRunner().invoke(app, ["status", str(run), "--json"]).output)["rollouts"]
    assert (facts["rounds"], facts["total_rounds"], facts["latest"]["ended"]) == (3, 5, 0.01)


def test_no_answers_to_show(run: Path) -> None:
    found = CliRunner().invoke(app, ["status", str(run), "--answers"])
    assert found.output.endswith("no own answers to show yet\n")


def test_a_run_that_is_not_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"RUN: no run at '.*runs'; runs there: first"):
        find_run(str(run.parent))
    monkeypatch.setenv("ULD_DS__RUN__STORAGE", str(run.parent))
    assert find_run("first") == run
    monkeypatch.delenv("ULD_DS__RUN__STORAGE")
    monkeypatch.chdir(run)
    with pytest.raises(UserError, match=r"no run at 'first'; give the folder run\.storage/run\.name of one"):
        find_run("first")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
