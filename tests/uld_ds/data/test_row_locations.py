"""Rows are named as their owner finds them: by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from uld_ds.data.row_locations import row_places
from uld_ds.data.sources import load_rows, source_files
from uld_ds.recipe import FilesSource, GeneratorSource

ROW = {"prompt": "q", "answer": "a"}


def places(*patterns: str | Path, **settings: Any) -> list[str]:
    source = FilesSource(source="files", path=[str(pattern) for pattern in patterns], **settings)
    return row_places(source, source_files(source, "data.train"), load_rows(source, "data.train"))


def lines(file: Path, *texts: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(texts) + "\n")
    return file


@pytest.mark.parametrize("broken", [False, True], ids=["table", "row by row"])
def test_lines_are_counted_as_an_editor_does(tmp_path: Path, broken: bool) -> None:
    row = json.dumps(ROW)
    lines(tmp_path / "a.jsonl", row, "", "   ", row)
    lines(tmp_path / "b.jsonl", "", row, *(['{"prompt": '] if broken else []))
    expected = ["a.jsonl line 1", "a.jsonl line 4", "b.jsonl line 2", *(["b.jsonl line 3"] if broken else [])]
    assert places(tmp_path / "*.jsonl") == expected
    assert places(tmp_path / "*.jsonl", limit=2) == expected[:2]
    assert places(tmp_path / "b.jsonl", tmp_path / "a.jsonl")[0] == "b.jsonl line 2"


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = [lines(tmp_path / name / "train.jsonl", json.dumps(ROW)) for name in ("x", "y")]
    assert places(*files) == [f"{file} line 1" for file in files]


def test_elements_of_lists_and_rows_of_tables(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([ROW, ROW], indent=1))
    assert places(tmp_path / "a.json") == ["a.json element 0", "a.json element 1"]
    # Lines, the first of which is a list, are lines.
    lines(tmp_path / "b.jsonl", "[1]", json.dumps(ROW))
    assert places(tmp_path / "b.jsonl") == ["b.jsonl line 1", "b.jsonl line 2"]
    for name in "cd":
        Dataset.from_list([ROW, ROW]).to_parquet(tmp_path / f"{name}.parquet")
    assert places(tmp_path / "*.parquet", limit=3) == ["c.parquet row 0", "c.parquet row 1", "d.parquet row 0"]


def test_other_sources_have_numbers_and_their_own_ids(tmp_path: Path) -> None:
    source = GeneratorSource(source="generator", function="a:b")
    rows = Dataset.from_list([{**ROW, "id": "q-17"}, {**ROW, "id": None}])
    assert row_places(source, [], rows) == ["row 0 (id q-17)", "row 1"]
    assert row_places(source, [], Dataset.from_list([{**ROW, "id": 3}])) == ["row 0 (id 3)"]
    assert places(lines(tmp_path / "a.jsonl", json.dumps({**ROW, "id": "x" * 99}))) == [
        f"a.jsonl line 1 (id {'x' * 60})"
    ]
