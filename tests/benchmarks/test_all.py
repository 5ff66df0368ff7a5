"""The file of results keeps what was not run again."""

from __future__ import annotations

from pathlib import Path

import all as every
import pytest

QUALITY = ["--folder", "~/quality", "--report", "--arm", "ce+0.3uld first"]


def test_sections_are_read_back_and_stand_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every, "RESULTS", tmp_path / "RESULTS.md")
    runs = [["store", "--quick"], ["step", "--quick"], ["step", "--steps", "2"], ["quality", *QUALITY]]
    sections = {every.line_of(*run): every.section(run[0], run[1:], f"table of {run}", 1.4) for run in runs}
    every.write(sections)
    text = every.RESULTS.read_text()
    assert text.startswith(every.HEADER) and every.read_sections(text) == sections
    commands = [line for line in text.splitlines() if line.startswith("`python")]
    assert commands == [
        "`python benchmarks/quality.py --folder ~/quality --report --arm 'ce+0.3uld first'`",
        "`python benchmarks/step.py --steps 2` (1 s)",
        "`python benchmarks/step.py --quick` (1 s)",
        "`python benchmarks/store.py --quick` (1 s)",
    ]


def test_what_is_run_must_be_a_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        every.parse(["--run", "quantity --quick"])
    assert "begins with none of demo, quality" in capsys.readouterr().err
    assert every.parse(["--run", "step --quick"]).run == ["step --quick"]
