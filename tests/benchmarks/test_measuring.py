"""What all benchmarks share; and that each of them says how it is used."""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path

import pytest
from measuring import Cell, add_output_options, ratio, spread, write_results

from tests.benchmarks.conftest import BENCHMARKS

SCRIPTS = ["alignment", "checkpoint", "lab", "on_policy_cost", "plan", "quality", "scaling", "step", "store"]
SCRIPTS += ["teacher", "uld", "pretrained"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"python benchmarks/{name}.py" in said
    for option in ("--quick", "--output FILE", "--markdown FILE"):
        assert option in said, option


def test_a_ratio_is_refused_where_the_spread_leaves_it_no_meaning() -> None:
    slow, fast = Cell("slow", 1, 1, [10.0, 10.5, 11.0]), Cell("fast", 1, 1, [2.0, 2.1, 2.2])
    assert ratio(slow, fast) == "5.00 (4.55-5.50)"
    assert ratio(Cell("slow", 1, 1, [10.0, 30.0]), fast).startswith("too noisy")
    assert ratio(Cell("slow", 1, 1, [10.0]), fast) == "one run only: no ratio"
    assert ratio(Cell("slow", 1, 1, skipped="too long"), fast) == "not measured"


def test_results_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_output_options(parser, quick="less")
    files = tmp_path / "a.json", tmp_path / "a.md"
    options = parser.parse_args(["--output", str(files[0]), "--markdown", str(files[1])])
    write_results("made-up", "| a |\n|---|", {"a": 1}, options, notes=["One run"])
    said = files[1].read_text()
    assert said == capsys.readouterr().out
    assert said.startswith("Machine: ") and " cores, " in said and "One run.\n\n| a |" in said
    record = json.loads(files[0].read_text())
    assert (record["benchmark"], record["results"]) == ("made-up", {"a": 1}) and record["machine"] in said
    assert spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
