"""Finished runs are used as long as they would be made alike now; what fails is told and counted."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import cells
import pytest


def options_of(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cells.add_folder_option(parser, keeps="nothing")
    cells.add_run_options(parser, seeds=5)
    return cells.parse_runs(parser, list(words), seeds=5, few="two arms")


def test_a_quick_run_has_one_seed_and_a_report_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert [options_of(*words).seeds for words in ([], ["--quick"], ["--quick", "--seeds", "3"])] == [5, 1, 3]
    with pytest.raises(SystemExit):
        options_of("--report")
    assert "--report needs --folder" in capsys.readouterr().err


def test_quick_runs_have_a_folder_of_their_own_and_a_temporary_one_goes(tmp_path: Path) -> None:
    seen: list[Path] = []

    def measure(folder: Path) -> int:
        assert cells.results_in(folder).is_dir()
        seen.append(folder)
        return 7

    for words in (["--folder", str(tmp_path)], ["--folder", str(tmp_path), "--quick"], []):
        assert cells.in_folder("x", options_of(*words), measure) == 7
    assert seen[:2] == [tmp_path / "full", tmp_path / "quick"]
    assert seen[2].name.startswith("uld-ds-x-") and not seen[2].exists() and seen[0].exists()


def test_a_run_is_finished_if_it_would_be_made_alike(tmp_path: Path) -> None:
    file = tmp_path / "0.3ce-0.json"
    assert cells.finished(file, {"setup": {"betas": (0.9, 0.95)}}) is None
    cells.write_json(file, {"setup": {"betas": (0.9, 0.95)}, "arm": "ce", "nats": [1.5]})
    assert list(tmp_path.iterdir()) == [file]
    alike = cells.finished(file, {"setup": {"betas": (0.9, 0.95)}, "arm": "ce"})
    assert alike is not None and alike["nats"] == [1.5]
    assert cells.finished(file, {"setup": {"betas": (0.9, 0.95)}, "arm": "uld"}) is None
    assert cells.finished(file, {"setup": {"betas": (0.9, 0.99)}}) is None


def note_process(folder: Path, name: str) -> None:
    if name == "bad":
        raise ValueError("no such arm")
    (folder / f"{name}.json").write_text(str(os.getpid()))


@pytest.mark.parametrize(("runs_per_process", "processes"), [(1, 2), (None, 1)])
def test_every_run_is_told_of_and_failed_ones_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs_per_process: int | None, processes: int
) -> None:
    calls: dict[str, cells.Call] = {name: (note_process, tmp_path, name) for name in ("one", "bad", "two")}
    failed = cells.run_all(1, calls, lambda name: f"said of {name}", runs_per_process=runs_per_process)
    assert failed == 1
    lines = sorted(line.partition(" ")[2] for line in capsys.readouterr().err.splitlines())
    assert lines == ["bad: failed: ValueError('no such arm')", "one: said of one", "two: said of two"]
    assert len({file.read_text() for file in tmp_path.iterdir()}) == processes


def test_what_is_written_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of("--quick", "--output", str(tmp_path / "x.json"))
    runs, before = [{"cpu_seconds": 3600.0}, {"cpu_seconds": 1800.0}], [{"cpu_seconds": 1440.0}]
    cells.write_runs("x", lambda: "| table |", {"cells": runs}, options, found=runs, wanted=3, before=before)
    said = capsys.readouterr().out
    assert "2 of 3 runs, 1.9 core-hours of training. a few steps, to see that it runs" in said
    assert said.endswith("\n\n| table |\n")
    assert json.loads((tmp_path / "x.json").read_text())["results"] == {"cells": runs}
    cells.write_runs("x", lambda: "| table |", {}, options_of(), found=[], wanted=3)
    said = capsys.readouterr().out
    assert said.endswith("0 of 3 runs, 0.0 core-hours of training.\n\nNo run has finished.\n")
