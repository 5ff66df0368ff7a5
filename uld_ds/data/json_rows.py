"""A reader of faulty JSON files, row by row: what cannot be read is one row's problem, not the file's.

A column of a table has one type, and a reader of tables gives up at the first row that does not fit. Here each row is
kept as its text, beside what is wrong with it, and opened when it is its turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

_TEXT, _PROBLEM = "json_text", "json_problem"
_SCHEMA = pa.schema([(_TEXT, pa.large_string()), (_PROBLEM, pa.string())])
_ROWS_PER_BATCH = 10_000


def is_utf8(file: Path) -> bool:
    """Tell whether all bytes of a file are UTF-8."""
    with file.open("rb") as stream:
        try:
            for line in stream:
                line.decode()
        except UnicodeDecodeError:
            return False
    return True


def closed_rows(files: Sequence[Path]) -> Dataset:
    """Read the rows of JSON or JSONL files as text; ``opened`` makes mappings of them.

    Raises:
        ValueError: a file is one JSON value, and is broken or no list.
    """
    found = (row for file in files for row in _rows(file))
    batches: list[pa.RecordBatch] = []
    while chunk := list(islice(found, _ROWS_PER_BATCH)):
        texts, problems = zip(*chunk, strict=True)
        columns = [pa.array(texts, pa.large_string()), pa.array(problems, pa.string())]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
    return Dataset(pa.Table.from_batches(batches, _SCHEMA))


def are_closed(rows: Dataset) -> bool:
    """Tell whether rows are text that is still to be opened, as ``closed_rows`` gives them."""
    return set(rows.column_names) == {_TEXT, _PROBLEM}


def opened(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Open a row of ``closed_rows`` to a mapping; any other row stays as it is.

    Raises:
        ValueError: the row cannot be read (says why).
    """
    if _PROBLEM not in row or _TEXT not in row:
        return row
    if row[_PROBLEM]:
        raise ValueError(row[_PROBLEM])
    found: Mapping[str, Any] = json.loads(row[_TEXT])
    return found


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    with file.open("rb") as stream:
        begins = stream.read(4096).lstrip()[:1]
        stream.seek(0)
        if begins == b"[" and not _first_line_is_json(file):
            yield from _elements(file)
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _checked(line, f"line {number} of {file.name}")


def _first_line_is_json(file: Path) -> bool:
    """Tell whether a file that begins with a bracket is lines after all, the first of which is a list."""
    with file.open("rb") as stream:
        line, rest = stream.readline(), stream.read(4096).strip()
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return bool(rest)


def _elements(file: Path) -> Iterator[tuple[str, str]]:
    try:
        elements = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    for number, element in enumerate(elements):
        yield _checked(json.dumps(element).encode(), f"element {number} of {file.name}")


def _checked(data: bytes, where: str) -> tuple[str, str]:
    try:
        text = data.decode()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        return "", f"{where} is not UTF-8 (byte {error.start})"
    except (ValueError, RecursionError) as error:
        return "", f"{where} is not JSON ({error})"
    if not isinstance(value, dict):
        return "", f"{where} holds {type(value).__name__}, not an object"
    return text, ""
