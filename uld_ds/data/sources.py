"""The sources of examples: local files, Hugging Face datasets, or a generator named in the recipe."""

from __future__ import annotations

import glob
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from uld_ds.conversations.parts import texts_of
from uld_ds.data.examples import ExampleReader
from uld_ds.data.hub_rows import read_hub
from uld_ds.data.json_tables import read_json
from uld_ds.data.table_files import read_tables
from uld_ds.errors import UserError, one_line
from uld_ds.recipe import DataSettings, DataSource, FilesSource, GeneratorSource, HubSource
from uld_ds.utils.files import in_home

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}


def load_rows(source: DataSource, key: str) -> Dataset:
    """Load the rows of a data source, in their own order.

    Args:
        source: Where the rows are.
        key: Recipe key of the source, e.g. ``data.train``.

    Raises:
        UserError: nothing there, an unreadable format, a generator that does not exist, or no rows at all.
    """
    if isinstance(source, FilesSource):
        rows = _from_files(source, key)
    elif isinstance(source, HubSource):
        rows = _from_hub(source, key)
    else:
        rows = _from_generator(source, key)
    if source.limit is not None:
        rows = rows.select(range(min(source.limit, len(rows))))
    if len(rows) == 0:
        raise _no_rows(source, key)
    return rows


def _no_rows(source: DataSource, key: str) -> UserError:
    return UserError(key, f"{source.source} source has no rows", "point it at data that has some")


def source_files(source: DataSource, key: str) -> list[Path]:
    """List the files of a source in the order in which they are read; none for another kind of source.

    Raises:
        UserError: a pattern that no file matches.
    """
    if not isinstance(source, FilesSource):
        return []
    patterns = [source.path] if isinstance(source.path, str) else source.path
    files: list[str] = []
    for pattern in patterns:
        found = _matching(str(in_home(pattern)))
        if not found:
            raise UserError(f"{key}.path", f"no file matches {pattern!r}", "correct the path or pattern")
        files.extend(found)
    return [Path(file) for file in files]


def _from_files(source: FilesSource, key: str) -> Dataset:
    files = [str(file) for file in source_files(source, key)]
    readers = {file: READERS.get(Path(file).suffix.lower()) for file in files}
    known = ", ".join(READERS)
    for file, reader in readers.items():
        if reader is None:
            raise UserError(f"{key}.path", f"{file!r} is of no known kind", f"give files that end in one of {known}")
    kinds = {str(reader) for reader in readers.values()}
    if len(kinds) > 1:
        raise UserError(f"{key}.path", f"files of several kinds: {', '.join(sorted(kinds))}", "give files of one kind")
    return _of_kind(kinds.pop(), [Path(file) for file in files], f"{key}.path", _no_rows(source, key))


def _of_kind(kind: str, files: list[Path], key: str, nothing: UserError) -> Dataset:
    """Read files of one kind; their texts are those of the files, whatever they look like.

    Args:
        kind: ``json``, ``parquet`` or ``arrow``.
        files: The files, in order.
        key: Recipe key that names them.
        nothing: Raised if there is no row in them.
    """
    if kind == "json":
        try:
            return read_json(files)
        except (ValueError, OSError) as error:
            raise UserError(key, one_line(error), "repair the file") from error
    try:
        return read_tables("parquet" if kind == "parquet" else "arrow", files, key)
    except UserError:
        raise
    except Exception as error:
        _raise_if_no_cache(error)
        # datasets has no exception of its own for files without a row.
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            raise nothing from error
        raise UserError(key, f"{str(files[0])!r}: {_first_cause(error)}", "repair the file") from error


def _raise_if_no_cache(error: BaseException) -> None:
    """Raise an error about the cache of ``datasets``, where it is that which failed: nothing is wrong with the data."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    for cause in _causes(error):
        place = cause.filename if isinstance(cause, OSError) else None
        if isinstance(place, str) and (cache.is_relative_to(place) or Path(place).is_relative_to(cache)):
            problem = f"the cache of data sets at {str(cache)!r} cannot be written ({cause})"
            raise UserError("HF_HOME", problem, "set it to a folder that can be written") from error


def _matching(pattern: str) -> list[str]:
    # A file that is there is meant, whatever its name would stand for as a pattern.
    if Path(pattern).is_file():
        return [pattern]
    return sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())  # noqa: PTH207


def _from_hub(source: HubSource, key: str) -> Dataset:
    try:
        return read_hub(source)
    except Exception as error:
        _raise_if_no_cache(error)
        raise UserError(
            f"{key}.dataset",
            f"cannot load {source.dataset!r} split {source.split!r} ({_first_cause(error)})",
            "correct dataset, config, split or revision, or the network or token that the hub needs",
        ) from error


def _from_generator(source: GeneratorSource, key: str) -> Dataset:
    function = _named_function(source.function, f"{key}.function")
    try:
        inspect.signature(function).bind(**source.arguments)
    except TypeError as error:
        raise UserError(f"{key}.arguments", f"{source.function}: {error}", "match the function's parameters") from error
    try:
        rows = [dict(row) for row in function(**source.arguments)]
        # datasets 5.2 takes the columns of the first row for those of all.
        columns = dict.fromkeys(name for row in rows for name in row)
        return Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
    except Exception as error:  # the function is the user's own
        problem = f"{source.function!r} failed with {_first_cause(error)} ({_place_of(error)})"
        raise UserError(f"{key}.function", problem, "correct the function or its arguments") from error


def _named_function(name: str, key: str) -> Callable[..., Iterator[dict[str, Any]]]:
    module_name, _, attribute = name.partition(":")
    try:
        # `python -m` looks in the current folder, an installed command does not: here they are alike.
        if str(Path.cwd()) not in sys.path and "" not in sys.path:
            sys.path.append(str(Path.cwd()))
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except Exception as error:  # whatever the user's module raises on import
        problem = f"{name!r} cannot be imported ({_first_cause(error)})"
        raise UserError(key, problem, "name an importable module:function") from error
    if not callable(target):
        raise UserError(key, f"{name!r} is not callable", "name a function")
    return target


def training_texts(data: DataSettings) -> Iterator[str]:
    """Yield every message of every usable training example, for a tokenizer to learn from.

    Raises:
        UserError: the rows cannot be loaded, or lack a column.
    """
    rows = load_rows(data.train, "data.train")
    reader = ExampleReader(data)
    reader.check(rows, "data.train")
    for row in rows:
        # Unusable rows are for the preparation to report, or to leave out.
        with suppress(ValueError):
            for message in reader(row).messages:
                yield from texts_of(message)


def _first_cause(error: BaseException) -> str:
    *_, first = _causes(error)
    return f"{type(first).__name__}: {one_line(first)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _place_of(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"
