"""JSON files as rows whose texts are the very texts of the files.

``datasets`` 5.2 reads JSON with pyarrow, which guesses types from what texts look like, one chunk or file at a time: a
column of texts that are all ISO dates becomes timestamps; where an earlier chunk has other texts, its dates come back
as text of another form (``2024-01-01`` as ``2024-01-01 00:00:00``), and after a chunk of numbers ``"007"`` is 7. In a
column of several kinds of values, texts are read as JSON once more: ``"0012"`` is 12 then, and quotes are lost. Here a
text is a text.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features

from uld_ds.data.json_rows import CLOSED_SCHEMA, closed_batches, json_rows
from uld_ds.errors import one_line
from uld_ds.utils.cache import build_once, cache_dir
from uld_ds.utils.files import file_digest

log = logging.getLogger(__name__)

# Changes whenever the same files would be read otherwise.
_FORMAT = 1
_ROWS_PER_BATCH = 1_000
# Of a row whose keys are data themselves, a table would have a column for each.
_MOST_FIELDS = 1_000
IN_MEMORY = 64 * 2**20
"""Files of so many bytes together are held in memory; the rows of larger ones lie in the cache and are mapped."""
_NO_TABLE = (pa.ArrowException, OverflowError, UnicodeEncodeError, NotImplementedError)


def read_json(files: Sequence[Path]) -> Dataset:
    """Read the rows of JSON or JSONL files: a table, or closed rows where their values make none.

    A table has a column for every key, null where a row lacks it. Rows that cannot be read, or in which a key holds
    several kinds of values, make closed ones, each of which is read by itself (``json_rows.opened``).

    Raises:
        ValueError: a file is one list, and is broken; names it.
    """
    identity = json.dumps([_FORMAT, *((file.name, file_digest(file)) for file in files)])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    if sum(file.stat().st_size for file in files) > IN_MEMORY:
        try:
            folder = build_once(cache_dir() / "rows" / name, lambda aside: _write_in(aside, files))
            return Dataset.from_file(str(folder / _NAME))
        except OSError as error:
            log.warning("rows are held in memory: %s cannot be written (%s)", cache_dir(), one_line(error))
    return Dataset(_whole_table(files), fingerprint=name)


_NAME = "rows.arrow"


def _write_in(folder: Path, files: Sequence[Path]) -> None:
    for schema, batches in _ways(files):
        with suppress(*_NO_TABLE), pa.ipc.new_stream(str(folder / _NAME), schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
            return


def _whole_table(files: Sequence[Path]) -> pa.Table:
    for schema, batches in _ways(files):
        with suppress(*_NO_TABLE):
            return pa.Table.from_batches(batches, schema)
    raise AssertionError("closed rows are always a table")


def _ways(files: Sequence[Path]) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Yield the ways to read files: as a table, if that seems possible, and as closed rows."""
    schema = _schema(files)
    if schema is not None:
        yield schema, (_batch(rows, schema) for rows in _chunks(files))
    yield CLOSED_SCHEMA, closed_batches(json_rows(files), _ROWS_PER_BATCH)


def _schema(files: Sequence[Path]) -> pa.Schema | None:
    """Find the schema that fits all rows of files; None if there is none."""
    schema: pa.Schema = pa.schema([])
    try:
        for rows in _chunks(files):
            found: pa.StructType = pa.array(rows).type
            # (Numbers may be widened. Text and another type have no type in common.)
            schema = pa.unify_schemas([schema, pa.schema(list(found))], promote_options="permissive")
            if _num_fields(schema) > _MOST_FIELDS:
                return None
        # As datasets writes it: a digest of rows is one of its schema, too.
        return Features.from_arrow_schema(schema).arrow_schema if schema else None
    except _NO_TABLE:
        return None


def _chunks(files: Sequence[Path]) -> Iterator[list[dict[str, Any]]]:
    """Yield the values of all rows.

    Raises:
        pa.ArrowInvalid: a row has none.
    """
    rows = json_rows(files)
    while chunk := list(islice(rows, _ROWS_PER_BATCH)):
        if any(row.value is None for row in chunk):
            raise pa.ArrowInvalid("not all rows can be read")
        yield [row.value for row in chunk if row.value is not None]


def _batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(pa.array(rows, pa.struct(list(schema))))


def _num_fields(schema: pa.Schema | pa.StructType) -> int:
    return sum(1 + _num_fields(_innermost(field.type)) for field in schema)


def _innermost(found: pa.DataType) -> Any:
    while pa.types.is_list(found):
        found = found.value_type
    return found if pa.types.is_struct(found) else pa.schema([])
