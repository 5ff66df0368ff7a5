"""Texts of JSON files are read as they stand there, whatever they look like and wherever in a row they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uld_ds.data import json_tables
from uld_ds.data.json_rows import are_closed, opened
from uld_ds.data.json_tables import read_json
from uld_ds.data.statistics import content_digest
from uld_ds.data.table_files import read_tables

# What some reader of tables takes for something else than text.
LOOKS = [
    *("2024-01-01", "2024-01-02 10:00:00", "2024-01-02T10:00:00Z", "12:30:00", "20240101", "2024-W01"),
    *("007", "7", "1.10", "1e5", "+1", "0x10", "1_000", "12345678901234567890123", "NaN", "Infinity", "-0"),
    *("true", "False", "yes", "null", "NA", "None", "~", "", " ", '"quoted"', "{}", '{"a": 1}', "[1]"),
]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


def lines(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def read(*files: Path) -> list[dict[str, Any]]:
    return [dict(opened(row)) for row in read_json(files)]


@pytest.mark.parametrize("look", LOOKS)
def test_a_column_of_texts_is_text(tmp_path: Path, look: str) -> None:
    turn = {"role": look, "content": look}
    rows = [{"answer": look, "messages": [turn, turn], "deep": [[{"x": [look]}]]}] * 3
    assert read(lines(tmp_path / "a.jsonl", rows)) == rows
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    assert read(tmp_path / "a.json") == rows
    # What is read as a table is one: its columns are known before any row is.
    assert read_json([tmp_path / "a.json"]).column_names == ["answer", "messages", "deep"]


@pytest.mark.parametrize("other", ["words", 7, 1.5, True, None, ["x"], {"x": 1}], ids=repr)
@pytest.mark.parametrize("look", ["2024-01-01", "007", "true", '"quoted"'])
def test_other_values_of_the_column_change_no_text(tmp_path: Path, look: str, other: Any) -> None:
    """In the same file before and after it, in another file before and after it."""
    one, two = [{"a": look, "m": [{"c": look}]}], [{"a": other, "m": [{"c": other}]}]
    files = [lines(tmp_path / "1.jsonl", one), lines(tmp_path / "2.jsonl", two)]
    assert read(lines(tmp_path / "b.jsonl", one + two)) == one + two
    assert read(lines(tmp_path / "b.jsonl", two + one)) == two + one
    assert read(*files) == one + two
    assert read(*reversed(files)) == two + one


def test_rows_far_apart_in_a_file(tmp_path: Path) -> None:
    rows = [{"a": "words", "n": 1}] * 2_500 + [{"a": "2024-01-01", "b": "007", "n": 1.5}]
    found = read_json([lines(tmp_path / "a.jsonl", rows)])
    assert found.column_names == ["a", "n", "b"]
    assert found[0] == {"a": "words", "n": 1.0, "b": None}
    assert found[2_500] == rows[-1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('\ufeff{"a": "007"}\n', [{"a": "007"}]),
        ('\n \n[{"a": "007", "made_at": "1700000000"}]', [{"a": "007", "made_at": "1700000000"}]),
        ('\ufeff[{"a": "007"}]', [{"a": "007"}]),
        ('{"a": "x"}\r\n\r\n{"a": "y\u2028z\u0085"}', [{"a": "x"}, {"a": "y\u2028z\u0085"}]),
        ('{\n "a": "x"\n}\n{\n "a": "007"}', [{"a": "x"}, {"a": "007"}]),
        ('{"a": "x"}\r{"a": "007"}\r', [{"a": "x"}, {"a": "007"}]),
        ('{"a": ["007"],\n"b": "2024-01-01"}', [{"a": ["007"], "b": "2024-01-01"}]),
        ('{"a": 123456789012345678901234567890}', [{"a": 123456789012345678901234567890}]),
        ('{"a": "x", "a": "y"}', [{"a": "y"}]),
        ('{"a": "\\ud83d"}', [{"a": "\ud83d"}]),
        ("{}\n", [{}]),
        ('{"a": {}}', [{"a": {}}]),
        ('{"a": {"_type": "Value", "dtype": "int32"}}', [{"a": {"_type": "Value", "dtype": "int32"}}]),
    ],
)
def test_forms_of_files(tmp_path: Path, content: str, expected: list[dict[str, Any]]) -> None:
    (file := tmp_path / "a.json").write_bytes(content.encode())
    assert read(file) == expected


def test_keys_that_are_data_make_no_columns(tmp_path: Path) -> None:
    rows = [{"a": {f"key {number}-{k}": "2024-01-01" for k in range(30)}} for number in range(50)]
    assert are_closed(read_json([lines(tmp_path / "a.jsonl", rows)]))
    assert read(tmp_path / "a.jsonl") == rows


def test_large_files_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(json_tables, "IN_MEMORY", 10)
    rows = [{"a": "2024-01-01"}, {"a": "x"}]
    mixed = [*rows, {"a": 7}]
    for given_rows in (rows, mixed):
        found = read_json([lines(tmp_path / "a.jsonl", given_rows)])
        assert [dict(opened(row)) for row in found] == given_rows
        (mapped,) = (Path(file["filename"]) for file in found.cache_files)
        assert mapped.is_relative_to(tmp_path / "cache" / "rows")
    assert len(list((tmp_path / "cache" / "rows").iterdir())) == 2
    # Without a cache that can be written, in memory.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "file"))
    assert read(tmp_path / "a.jsonl") == mixed


def test_digests_of_ordinary_rows_are_those_that_were_recorded(tmp_path: Path) -> None:
    """Registered versions say by a digest which rows they were evaluated on: those of ``datasets`` until now."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ä"}]
    rows = [{"messages": turns, "n": 1, "x": 0.5, "ok": True, "none": None, "tags": ["a", "b"]}] * 3
    file = lines(tmp_path / "a.jsonl", [*rows, {"messages": turns}])
    by_datasets = load_dataset("json", data_files=[str(file)], split="train")
    assert content_digest(read_json([file])) == content_digest(by_datasets)


def test_a_table_written_as_json_is_that_table(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"a": "2024-01-01", "b": [1, 2]}, {"a": "x", "b": None}])
    rows.to_parquet(tmp_path / "a.parquet")
    rows.to_json(tmp_path / "a.jsonl")
    (table,) = (read_tables("parquet", [tmp_path / "a.parquet"], "k"),)
    assert content_digest(read_json([tmp_path / "a.jsonl"])) == content_digest(table)


texts = st.sampled_from(LOOKS) | st.text(st.characters(codec="utf-8"), max_size=6)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)


def filled(value: Any, like: Any) -> Any:
    """What a table adds to a value: null under every key that it lacks."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: filled(value.get(key), inner) for key, inner in like.items()}
    if isinstance(value, list) and isinstance(like, list):
        return [filled(one, other) for one, other in zip(value, like, strict=True)]
    return value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from("ab"), plain, max_size=2), min_size=1, max_size=4))
def test_any_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    found = read(lines(tmp_path / "a.jsonl", rows))
    assert len(found) == len(rows)
    for row, there in zip(rows, found, strict=True):
        assert filled(row, there) == there
        assert set(row) <= set(there)
