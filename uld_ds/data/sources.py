"""Reading examples: local files, Hugging Face datasets, or a generator named in the recipe."""

from __future__ import annotations

import glob
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk

from uld_ds.errors import UserError
from uld_ds.recipe import ColumnSettings, DataSource, FilesSource, GeneratorSource, HubSource

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class Example:
    """One conversation: messages before the answer, and the answer."""

    prompt: tuple[dict[str, str], ...]
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return [*self.prompt, {"role": "assistant", "content": self.answer}]


def load_rows(source: DataSource, key: str) -> Dataset:
    """Rows of a data source, in their own order.

    Args:
        source: where they are.
        key: the recipe key of the source, e.g. ``data.train``.

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
        raise UserError(key, f"{source.source} source has no rows", "point it at data that has some")
    return rows


def _from_files(source: FilesSource, key: str) -> Dataset:
    patterns = [source.path] if isinstance(source.path, str) else source.path
    files: list[str] = []
    for pattern in patterns:
        found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
        if not found:
            raise UserError(f"{key}.path", f"no file matches {pattern!r}", "correct the path or pattern")
        files.extend(found)
    suffixes = {Path(file).suffix for file in files}
    readers = {READERS.get(suffix) for suffix in suffixes}
    if len(readers) != 1 or None in readers:
        given, known = ", ".join(sorted(suffixes)), ", ".join(READERS)
        raise UserError(f"{key}.path", f"files end in {given}", f"give files of one kind out of {known}")
    try:
        return load_dataset(readers.pop(), data_files=files, split="train")
    except Exception as error:
        raise UserError(f"{key}.path", f"{files[0]}: {_first_cause(error)}", "repair the file") from error


def _from_hub(source: HubSource, key: str) -> Dataset:
    try:
        if Path(source.dataset).is_dir() and (Path(source.dataset) / "state.json").is_file():
            return load_from_disk(source.dataset)
        return load_dataset(source.dataset, source.config, split=source.split, revision=source.revision)
    except Exception as error:
        raise UserError(
            f"{key}.dataset",
            f"cannot load {source.dataset!r} split {source.split!r} ({_first_cause(error)})",
            "correct dataset, config, split or revision, or the network or token that the hub needs",
        ) from error


def _from_generator(source: GeneratorSource, key: str) -> Dataset:
    function = _named_function(source.function, f"{key}.function")
    try:
        rows = list(function(**source.arguments))
    except TypeError as error:
        raise UserError(
            f"{key}.arguments", f"{source.function}: {error}", "match the function's parameters"
        ) from error
    return Dataset.from_list(rows)


def _named_function(name: str, key: str) -> Callable[..., Iterator[dict[str, Any]]]:
    module_name, _, attribute = name.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise UserError(
            key, f"{name!r} cannot be imported ({error})", "name an importable module:function"
        ) from error
    if not callable(target):
        raise UserError(key, f"{name!r} is not callable", "name a function")
    return target


def check_columns(rows: Dataset, columns: ColumnSettings, key: str) -> None:
    """Raises UserError when a column that the recipe names is not in the rows."""
    if columns.messages is not None:
        wanted = {"messages": columns.messages}
    else:
        wanted = {"prompt": columns.prompt, "answer": columns.answer}
    for role, name in wanted.items():
        if name not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise UserError(
                f"data.columns.{role}",
                f"{key} has no column {name!r}",
                f"set it to one of the columns there: {there}",
            )


def as_example(row: dict[str, Any], columns: ColumnSettings) -> Example:
    """One row as an Example.

    Raises:
        ValueError: no answer, or messages that do not hold an assistant turn.
    """
    if columns.messages is None:
        prompt: tuple[dict[str, str], ...] = (
            {"role": "user", "content": _text(row[columns.prompt], columns.prompt)},
        )
        answer = _text(row[columns.answer], columns.answer)
    else:
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row[columns.messages] or []]
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
        if not turns:
            raise ValueError(f"column {columns.messages!r} has no assistant turn")
        prompt, answer = tuple(turns[:-1]), _text(turns[-1]["content"], columns.messages)
    if not answer.strip():
        raise ValueError("the answer is empty")
    return Example(prompt, answer)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} holds {type(value).__name__}, not text")
    return value


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
