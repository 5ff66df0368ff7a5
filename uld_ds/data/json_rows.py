"""The rows of JSON files, read one by one: what cannot be read is one row's problem, not the file's.

A column of a table has one type, and rows that do not share one are kept as their texts, each beside what is wrong with
it, and opened when it is its turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset

_TEXT, _PROBLEM = "json_text", "json_problem"
CLOSED_SCHEMA = pa.schema([(_TEXT, pa.large_string()), (_PROBLEM, pa.string())])
_BOM = b"\xef\xbb\xbf"
_WHITE_SPACE = re.compile(r"\s*")
# A larger file whose first line is broken is lines: to look for objects over several lines takes all of it at once.
_MOST_IN_MEMORY = 2**30


class JsonRow(NamedTuple):
    """A row of a JSON file: its value, or what is wrong with it."""

    value: dict[str, Any] | None
    """Columns by name; None where there is a problem."""
    problem: str
    """What is wrong, with the place in the file; empty where nothing is."""


def json_rows(files: Sequence[Path]) -> Iterator[JsonRow]:
    """Read the rows of files that are lines of JSON objects, one list of them, or objects one after the other.

    Raises:
        ValueError: a file is one list, and is broken; names it.
    """
    for file in files:
        yield from _rows(file)


def closed_batches(rows: Iterator[JsonRow], rows_per_batch: int) -> Iterator[pa.RecordBatch]:
    """Put rows into batches of their texts and problems, of ``CLOSED_SCHEMA``; ``opened`` makes mappings of them."""
    while chunk := list(islice(rows, rows_per_batch)):
        texts, problems = zip(*map(_closed, chunk), strict=True)
        yield pa.record_batch([pa.array(texts, pa.large_string()), pa.array(problems, pa.string())], CLOSED_SCHEMA)


def are_closed(rows: Dataset) -> bool:
    """Tell whether rows are text that is still to be opened, as ``closed_batches`` gives them."""
    return set(rows.column_names) == {_TEXT, _PROBLEM}


def opened(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Open a row of ``closed_batches`` to a mapping; any other row stays as it is.

    Raises:
        ValueError: the row cannot be read (says why).
    """
    if _PROBLEM not in row or _TEXT not in row:
        return row
    if row[_PROBLEM]:
        raise ValueError(row[_PROBLEM])
    found: Mapping[str, Any] = json.loads(row[_TEXT])
    return found


def _closed(row: JsonRow) -> tuple[str, str]:
    # (Half of a character, which JSON can spell, is spelled again: it could not be written.)
    return ("" if row.value is None else json.dumps(row.value)), row.problem


def row_names(file: Path) -> Iterator[str]:
    """Name the rows of a file as a person counts them: ``line 7``, ``element 0`` of a list, ``value 0`` of several."""
    values = _values(file)
    if values is not None:
        yield from (f"{values.name} {number}" for number in range(len(values.found)))
        return
    with file.open("rb") as stream:
        yield from (f"line {number}" for number, line in enumerate(stream, 1) if _text_of(line, number).strip())


class _Values(NamedTuple):
    """The values of a file that is no lines, and what one of them is called."""

    name: str
    found: list[Any]


def _rows(file: Path) -> Iterator[JsonRow]:
    values = _values(file)
    if values is not None:
        for number, value in enumerate(values.found):
            yield _checked(value, f"{values.name} {number} of {file.name}")
        return
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            data = _text_of(line, number)
            if data.strip():
                yield _parsed(data, f"line {number} of {file.name}")


def _text_of(line: bytes, number: int) -> bytes:
    return line.removeprefix(_BOM) if number == 1 else line


def _values(file: Path) -> _Values | None:
    """Read a file that is one list, or objects that take several lines each; None if it is lines.

    Raises:
        ValueError: it is one list, and is broken.
    """
    if _first_line_is_json(file):
        return None
    with file.open("rb") as stream:
        begins = stream.read(4096).removeprefix(_BOM).lstrip()[:1]
    if begins == b"[":
        return _Values("element", _elements(file))
    values = _one_after_the_other(file) if begins == b"{" and file.stat().st_size <= _MOST_IN_MEMORY else None
    return None if values is None else _Values("value", values)


def _first_line_is_json(file: Path) -> bool:
    """Tell whether a file is lines: its first one is a value, and no list that is the whole file."""
    with file.open("rb") as stream:
        lines = (text for number, line in enumerate(stream, 1) if (text := _text_of(line, number)).strip())
        first, rest = next(lines, b""), next(lines, b"")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return bool(rest) or not isinstance(value, list)


def _elements(file: Path) -> list[Any]:
    try:
        elements: list[Any] = json.loads(file.read_bytes().removeprefix(_BOM))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r}: is not JSON ({error})") from error
    return elements


def _one_after_the_other(file: Path) -> list[Any] | None:
    values: list[Any] = []
    decoder = json.JSONDecoder()
    try:
        text = file.read_bytes().removeprefix(_BOM).decode().strip()
        place = 0
        while place < len(text):
            value, end = decoder.raw_decode(text, place)
            values.append(value)
            place = _WHITE_SPACE.match(text, end).end()  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return None
    return values


def _parsed(data: bytes, where: str) -> JsonRow:
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError as error:
        return JsonRow(None, f"{where} is not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:
        return JsonRow(None, f"{where} is not JSON ({error})")
    return _checked(value, where)


def _checked(value: Any, where: str) -> JsonRow:
    if not isinstance(value, dict):
        return JsonRow(None, f"{where} holds {type(value).__name__}, not an object")
    return JsonRow(value, "")
