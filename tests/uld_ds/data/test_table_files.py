"""Parquet and Arrow files whose columns differ are read as lines of JSON that differ alike are."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uld_ds.data.sources import load_rows
from uld_ds.data.table_files import read_tables
from uld_ds.errors import UserError
from uld_ds.recipe import FilesSource

Kind = Literal["parquet", "arrow"]
KINDS: list[Kind] = ["parquet", "arrow"]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


def written(folder: Path, kind: Kind, *tables: pa.Table) -> list[Path]:
    files = [folder / f"{number}.{kind}" for number in range(len(tables))]
    for file, table in zip(files, tables, strict=True):
        if kind == "parquet":
            pq.write_table(table, file)
        else:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    return files


def read(folder: Path, kind: Kind, *tables: pa.Table) -> list[dict[str, Any]]:
    return read_tables(kind, written(folder, kind, *tables), "data.train.path").to_list()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_with_one_more_column_wherever_it_stands(tmp_path: Path, kind: Kind, place: int) -> None:
    rows: list[list[dict[str, Any]]] = [[{"prompt": f"q{n}", "answer": "a"}] for n in range(3)]
    rows[place][0]["source"] = "web"
    files = written(tmp_path, kind, *(pa.Table.from_pylist(part) for part in rows))
    for part, file in zip(rows, files, strict=True):
        file.with_suffix(".jsonl").write_text(json.dumps(part[0]) + "\n")

    def loaded(ending: str) -> list[dict[str, Any]]:
        source = FilesSource(source="files", path=f"{tmp_path}/*.{ending}")
        return load_rows(source, "data.train").to_list()

    assert loaded(kind) == loaded("jsonl") == [{"source": None, **part[0]} for part in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_more_within_a_column(tmp_path: Path, kind: Kind) -> None:
    turns = [[{"role": "user", "content": "q"}]], [[{"role": "user", "content": "r", "name": "n"}]]
    for one, other in (turns, turns[::-1]):
        found = read(tmp_path, kind, pa.table({"m": one}), pa.table({"m": other}))
        assert found == [{"m": [{"name": None, **part[0][0]}]} for part in (one, other)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "as_text"), [([7], "7"), ([1.5], "1.5"), ([datetime.date(2024, 1, 2)], "2024-01-02"), ([None], None)]
)
def test_text_stays_text_beside_another_type(tmp_path: Path, kind: Kind, values: list[Any], as_text: str) -> None:
    other, text = pa.table({"a": values}), pa.table({"a": ["007"]})
    assert read(tmp_path, kind, other, text) == [{"a": as_text}, {"a": "007"}]
    assert read(tmp_path, kind, text, other) == [{"a": "007"}, {"a": as_text}]
    nested = [pa.table({"m": [[{"c": table["a"][0].as_py()}]]}) for table in (other, text)]
    assert read(tmp_path, kind, *nested) == [{"m": [{"c": as_text}]}, {"m": [{"c": "007"}]}]


def test_numbers_are_widened_and_types_of_text_are_one(tmp_path: Path) -> None:
    assert read(tmp_path, "parquet", pa.table({"a": [1]}), pa.table({"a": [1.5]})) == [{"a": 1.0}, {"a": 1.5}]
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    tables = [pa.table({"a": pa.array(["x"]).cast(kind)}) for kind in kinds]
    assert read(tmp_path, "parquet", *tables) == [{"a": "x"}] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_nothing_in_common_is_named_with_both_types(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, kind, pa.table({"a": ["x"]}), pa.table({"a": [["x"]]}))
    assert str(caught.value) == (
        f"data.train.path: column 'a' is string before '{tmp_path}/1.{kind}', where it is list<item: string>; "
        "give files whose columns hold the same"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_broken_file_is_the_one_that_is_named(tmp_path: Path, kind: Kind) -> None:
    files = written(tmp_path, kind, pa.table({"a": ["x"]}), pa.table({"a": ["x"]}))
    files[1].write_bytes(b"no table")
    with pytest.raises(UserError) as caught:
        read_tables(kind, files, "data.train.path")
    assert str(caught.value).startswith(f"data.train.path: '{files[1]}': ")
    assert str(caught.value).endswith("; repair the file")


def test_the_type_of_a_date_is_the_files_own(tmp_path: Path) -> None:
    """A column that is of dates in a file with types holds no text."""
    day = datetime.date(2024, 1, 2)
    assert read(tmp_path, "parquet", pa.table({"a": [day]})) == [{"a": day}]
