"""Datasets in a folder, read as those of the hub: what is text in their files is text."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from uld_ds.data.hub_rows import read_hub
from uld_ds.recipe import HubSource

DATES = '{"a": "2024-01-01"}\n{"a": "2024-01-02"}\n'


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without ``test`` in its path, in which datasets would see a split."""
    return tmp_path_factory.mktemp("rows")


def read(folder: Path, **options: Any) -> list[dict[str, Any]]:
    return read_hub(HubSource(source="hub", dataset=str(folder), **options)).to_list()


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ["2024-01-01", "2024-01-02"]),
        ("test", ["007"]),
        ("train[1:]", ["2024-01-02"]),
        ("train[:50%]", ["2024-01-01"]),
        ("train[:1]+test", ["2024-01-01", "007"]),
    ],
)
def test_splits_of_json(folder: Path, split: str, expected: list[str]) -> None:
    (folder / "train.jsonl").write_text(DATES)
    (folder / "test.jsonl").write_text('{"a": "007"}\n')
    assert [row["a"] for row in read(folder, split=split)] == expected


def test_a_split_that_is_not_there(folder: Path) -> None:
    (folder / "train.jsonl").write_text(DATES)
    with pytest.raises(ValueError, match="there is no such split, but train"):
        read(folder, split="dev")


def test_packed_json(folder: Path) -> None:
    with gzip.open(folder / "train.jsonl.gz", "wt") as file:
        file.write(DATES)
    assert [row["a"] for row in read(folder)] == ["2024-01-01", "2024-01-02"]


def test_part_of_a_json_file(folder: Path) -> None:
    (folder / "x.json").write_text('{"version": 1, "data": [{"a": "words"}]}')
    (folder / "README.md").write_text("---\nconfigs:\n- {config_name: c, data_files: x.json, field: data}\n---\n")
    assert read(folder) == [{"a": "words"}]


def test_cells_of_csv_are_text(folder: Path) -> None:
    cells = ["007", "1.10", "true", "NA", "null", "nan", "2024-01-01", '"a, ""b"""', "12345678901234567890123", "x"]
    (folder / "train.csv").write_text("a,b,none\n" + "".join(f"{cell},words,\n" for cell in cells))
    found = read(folder)
    assert [row["a"] for row in found] == [*cells[:7], 'a, "b"', *cells[8:]]
    assert {row["none"] for row in found} == {None}
    assert [row["a"] for row in read(folder, split="train[:2]")] == cells[:2]


def test_csv_in_the_form_that_its_card_says(folder: Path) -> None:
    (folder / "x.csv").write_text("a;b\n0.10;010\n")
    (folder / "README.md").write_text("---\nconfigs:\n- {config_name: c, data_files: x.csv, sep: ;}\n---\n")
    assert read(folder) == [{"a": "0.10", "b": "010"}]
