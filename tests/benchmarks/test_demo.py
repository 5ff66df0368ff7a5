"""Where the demo's seconds go: parts of a run's journal."""

from __future__ import annotations

from pathlib import Path

import demo
import pytest


def step(number: int, time: float, seconds: float) -> dict[str, object]:
    return {"event": "step", "step": number, "time": time, "seconds/total": seconds}


def test_parts_add_up_to_the_whole() -> None:
    journal = [
        {"event": "stage", "text": "loading the teacher", "time": 104.0},
        {"event": "start", "step": 0, "time": 110.0},
        {"event": "evaluation", "step": 0, "time": 113.0},
        step(1, 116.0, 3.0),
        step(2, 119.5, 3.5),
        step(3, 120.5, 1.0),
        step(4, 122.0, 1.5),
        {"event": "evaluation", "step": 4, "time": 124.0},
        {"event": "end", "time": 130.0},
    ]
    parts = demo.parts(journal, started=100.0, seconds=32.0, per_epoch=2)
    assert list(parts.values()) == pytest.approx([10.0, 6.5, 2.5, 5.0, 8.0])
    assert sum(parts.values()) == pytest.approx(32.0)


def test_a_run_that_is_there_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.setattr("sys.argv", ["demo.py", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit):
        demo.main()
    assert "is there already" in capsys.readouterr().err
