"""The files of results keep what was not run again."""

from __future__ import annotations

import re
from pathlib import Path

import all as every
import pytest

QUALITY = ["--folder", "~/quality", "--report", "--arm", "ce+0.3uld first"]


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("`python")]


def test_sections_are_read_back_and_stand_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every, "RESULTS", tmp_path / "results")
    assert every.read_results() == {}
    runs = [["store", "--quick"], ["step", "--quick"], ["step", "--steps", "2"], ["quality", *QUALITY], ["plan"]]
    sections = {every.line_of(*run): every.section(run[0], run[1:], f"table of {run}", 1.4) for run in runs}
    every.write(sections)
    assert every.read_results() == sections
    files = {file.name: file.read_text() for file in every.RESULTS.iterdir()}
    assert files.keys() == {"README.md", "quality.md", "step.md", "store.md", "plan.md"}
    assert commands(files["quality.md"]) == [
        "`python benchmarks/quality.py --folder ~/quality --report --arm 'ce+0.3uld first'`"
    ]
    assert commands(files["step.md"]) == [
        "`python benchmarks/step.py --steps 2` (1 s)",
        "`python benchmarks/step.py --quick` (1 s)",
    ]
    assert commands(files["store.md"]) == ["`python benchmarks/store.py --quick` (1 s)"]
    assert commands(files["plan.md"]) == ["`python benchmarks/plan.py` (1 s)"]
    for name, text in files.items():
        assert re.findall(r"^# .+$", text, flags=re.MULTILINE) == [text.splitlines()[0]], name
        assert every.WRITTEN_BY.strip() in text, name
    headings = re.findall(r"^## .+$", files["step.md"] + files["plan.md"], flags=re.MULTILINE)
    assert headings == ["## `--steps 2`", "## Short version", "## Without options"]


def test_index_names_every_command_and_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every, "RESULTS", tmp_path)
    runs = [["step", "--quick"], ["step", "--steps", "2"], ["uld"]]
    every.write({every.line_of(*run): every.section(run[0], run[1:], "table", 1.4) for run in runs})
    assert [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| ")] == [
        "| benchmark | command | results |",
        f"| {every.TITLES['uld']} | `python benchmarks/uld.py` | [uld.md](uld.md) |",
        f"| {every.TITLES['step']} | `python benchmarks/step.py --steps 2` | [step.md](step.md) |",
        "| | `python benchmarks/step.py --quick` | |",
    ]


def test_files_are_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the repository's folder of results, written again, is the same bytes: nobody edits them by hand."""
    folder, sections = every.RESULTS, every.read_results()
    assert len(sections) >= 30
    monkeypatch.setattr(every, "RESULTS", tmp_path)
    every.write(sections)
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        file.name: file.read_text() for file in tmp_path.iterdir()
    }


def test_what_is_run_must_be_a_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        every.parse(["--run", "quantity --quick"])
    assert "begins with none of demo, quality" in capsys.readouterr().err
    assert every.parse(["--run", "step --quick"]).run == ["step --quick"]
