"""The places of a source's rows in the user's own data: a file and a line, not a number after everything was read.

Blank lines, several files and rows that were left out shift numbers; whoever has to correct an example needs its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset

from uld_ds.data.json_rows import row_names
from uld_ds.recipe import DataSource, FilesSource

OWN_ID = "id"
"""Name of the column that is shown beside a row's place."""
_LONGEST_ID = 60


def row_places(source: DataSource, files: Sequence[Path], rows: Dataset) -> list[str]:
    """Name the place of each row, e.g. ``train.jsonl line 7``, with its own id where it has one.

    Args:
        source: Source of the rows.
        files: Files of a source of files, in the order in which they were read.
        rows: Rows of the source, in their order.
    """
    places = _in_files(source, files, len(rows)) or [f"row {number}" for number in range(len(rows))]
    if OWN_ID not in rows.column_names:
        return places
    return [
        f"{place} (id {str(own)[:_LONGEST_ID]})" if isinstance(own, str | int) else place
        for place, own in zip(places, rows[OWN_ID], strict=True)
    ]


def _in_files(source: DataSource, files: Sequence[Path], num_rows: int) -> list[str] | None:
    """Name the place of each row in its file; None where a file's layout does not tell which row is where."""
    if not isinstance(source, FilesSource):
        return None
    names = [file.name for file in files]
    shown = names if len(set(names)) == len(names) else [str(file) for file in files]
    found: list[str] = []
    for file, name in zip(files, shown, strict=True):
        found.extend(f"{name} {place}" for place in islice(_places(file), num_rows + 1 - len(found)))
    is_cut = source.limit is not None and len(found) > num_rows
    return found[:num_rows] if is_cut or len(found) == num_rows else None


def _places(file: Path) -> Iterator[str]:
    if file.suffix.lower() == ".parquet":
        yield from (f"row {number}" for number in range(pq.read_metadata(file).num_rows))
    elif file.suffix.lower() in (".json", ".jsonl"):
        yield from row_names(file)
