"""Parquet and Arrow files as one table with the columns of all of them.

``datasets`` 5.2 takes the first file's columns and types for those of all: a file with one more is refused, and text
that comes after numbers is made a number (``"007"`` is 7). Here a file that lacks a column has null there, as a row of
JSON that lacks a key has, and where one file has text, the column is text.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, load_dataset

from uld_ds.errors import UserError, one_line


def read_tables(kind: Literal["parquet", "arrow"], files: Sequence[Path], key: str) -> Dataset:
    """Read the rows of table files, in their order.

    Args:
        kind: What all of the files are.
        files: One or more of them.
        key: Recipe key that names them.

    Raises:
        UserError: a file that cannot be read, or a column that is of two kinds which nothing is in common to.
    """
    whole = _features_of(kind, files[0], key)
    for file in files[1:]:
        for name, feature in _features_of(kind, file, key).items():
            if whole.setdefault(name, feature) == feature:
                continue
            before, here = (Features({name: known}).arrow_schema.field(name).type for known in (whole[name], feature))
            try:
                both = pa.schema([(name, _common(before, here))])
            except pa.ArrowException as error:
                problem = f"column {name!r} is {before} before {str(file)!r}, where it is {here}"
                raise UserError(key, problem, "give files whose columns hold the same") from error
            whole[name] = Features.from_arrow_schema(both)[name]
    # (Its own error names no file, and a message on the screen besides.)
    return load_dataset(kind, data_files=[glob.escape(str(file)) for file in files], split="train", features=whole)


def _features_of(kind: str, file: Path, key: str) -> Features:
    try:
        return Features.from_arrow_schema(pq.read_schema(file) if kind == "parquet" else _arrow_schema(file))
    except (pa.ArrowException, OSError, NotImplementedError, ValueError) as error:
        raise UserError(key, f"{str(file)!r}: {one_line(error, kind=True)}", "repair the file") from error


def _arrow_schema(file: Path) -> pa.Schema:
    with pa.memory_map(str(file)) as source:
        with suppress(pa.ArrowInvalid):
            return pa.ipc.open_stream(source).schema
        source.seek(0)
        return pa.ipc.open_file(source).schema


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Find the type that holds the values of both; text holds every single value.

    Raises:
        pa.ArrowException: there is none.
    """
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = _common(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items()))
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_common(one.value_type, other.value_type))
    has_text = _is_text(one) or _is_text(other)
    if has_text and not pa.types.is_nested(one) and not pa.types.is_nested(other):
        return pa.large_string() if pa.large_string() in (one, other) else pa.string()
    schemas = [pa.schema([("both", found)]) for found in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("both").type


def _is_text(found: pa.DataType) -> bool:
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
