"""The file of skipped steps, whose examples may be own answers of the student."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset

from uld_ds.training.skipped_steps import OWN_ANSWER, SkippedSteps, read_skipped

ROWS = Dataset.from_list([{"place": f"train.jsonl line {n}", "digest": f"digest {n}"} for n in range(1, 4)])


def test_own_answers_have_no_place_in_the_data(tmp_path: Path) -> None:
    skipped, file = [], tmp_path / "skipped.jsonl"
    for step, suspects in enumerate([(0, 2), (1, 3, 7), (5,)], 1):
        result: Any = SimpleNamespace(suspects=suspects, reason="the loss is nan")
        skipped.append(SkippedSteps(file, ROWS).add(step, result))
    assert [line["places"] for line in skipped] == [
        ["train.jsonl line 1", "train.jsonl line 3"],
        ["train.jsonl line 2", OWN_ANSWER, OWN_ANSWER],
        [OWN_ANSWER],
    ]
    assert [line["digests"] for line in skipped] == [["digest 1", "digest 3"], ["digest 2"], []]
    assert read_skipped(file) == skipped
