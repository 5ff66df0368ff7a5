"""What a run writes about itself is what a watcher reads: in order, once, and whole."""

from __future__ import annotations

from pathlib import Path

from uld_ds.runs.progress import ProgressReader, ProgressWriter


def test_events_come_in_order_and_once(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    writer, reader = ProgressWriter(file), ProgressReader(file)
    assert list(reader.new_events()) == []
    writer.stage("loading\nthe teacher ü")
    writer.step(1, 5, {"train/loss": 2.5})
    events = list(reader.new_events())
    assert all(event.pop("time") > 0 for event in events)
    assert events == [
        {"event": "stage", "text": "loading\nthe teacher ü"},
        {"event": "step", "step": 1, "total": 5, "train/loss": 2.5},
    ]
    assert list(reader.new_events()) == []
    writer.evaluation(5, "after", 1.25)
    (event,) = reader.new_events()
    assert {**event, "time": 0} == {"event": "evaluation", "step": 5, "who": "after", "bits_per_byte": 1.25, "time": 0}


def test_a_reader_starts_at_the_end(tmp_path: Path) -> None:
    writer = ProgressWriter(tmp_path / "progress.jsonl")
    writer.stage("of an earlier attempt")
    reader = ProgressReader(tmp_path / "progress.jsonl")
    writer.stage("of this one")
    assert [event["text"] for event in reader.new_events()] == ["of this one"]


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    reader = ProgressReader(file)
    for part, expected in (('{"event": "st', []), ('age"}\n{"event"', ["stage"]), (': "step"}\n', ["step"])):
        with file.open("a") as out:
            out.write(part)
        assert [event["event"] for event in reader.new_events()] == expected
