"""The preparation of data: rows of text to tokenized examples on disk, cached by their content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from uld_ds.data.bad_examples import note_bad_examples
from uld_ds.data.examples import Example, ExampleReader
from uld_ds.data.notes import counted, lines_of
from uld_ds.data.pairing import Pairing
from uld_ds.data.prepared import Split
from uld_ds.data.row_locations import row_places
from uld_ds.data.several_teachers import SeveralPairings
from uld_ds.data.sides import Side, TextSide
from uld_ds.data.sources import load_rows, source_files
from uld_ds.data.statistics import DataFacts, content_digest, digest_of, facts_of
from uld_ds.errors import UserError
from uld_ds.recipe import DataSettings, DataSource, Recipe
from uld_ds.recipe.models import ONLY_TEACHER
from uld_ds.utils.cache import build_once

log = logging.getLogger(__name__)

# Changes whenever the same rows would be prepared otherwise.
PREPARED_FORMAT = 8
_NOTES = "notes.json"
ROWS_PER_PROCESS = 2_000


class NoRowsOfJudgeError(UserError):
    """The teacher whose rows alone were asked for judges none of them."""


class RowWork(Protocol):
    """Work that makes prepared rows of examples."""

    features: Features
    answered: bool
    """Whether examples have an answer; those of prompts alone have an empty one."""

    def identity(self) -> dict[str, Any]:
        """Return all that decides the result, besides the examples, as plain values."""
        ...

    def __call__(self, examples: Sequence[Example]) -> list[dict[str, Any] | str]:
        """Make a row of each example, or say what is wrong with it."""
        ...


class Preparer:
    """A maker of prepared splits of a recipe, for one student and its teachers.

    Args:
        recipe: Recipe of the run.
        student: Side of the student, or the tokenizer of a decoder-only model.
        teachers: Side of each teacher by its name, or that of the only one; it may be a stored one, or the tokenizer of
            a decoder-only model.
    """

    def __init__(
        self,
        recipe: Recipe,
        student: PreTrainedTokenizerBase | TextSide,
        teachers: PreTrainedTokenizerBase | Side | Mapping[str, Side],
    ) -> None:
        special_tokens = recipe.data.special_tokens
        if isinstance(student, PreTrainedTokenizerBase):
            student = TextSide(student, recipe.student, "student", special_tokens=special_tokens)
        if isinstance(teachers, PreTrainedTokenizerBase):
            teachers = TextSide(teachers, recipe.teacher_named(), "teacher", special_tokens=special_tokens)
        if not isinstance(teachers, Mapping):
            teachers = {recipe.teacher_named().name: teachers}
        self._data = recipe.data
        self._names = recipe.names_of_judges
        pairings = {
            name: Pairing(
                student,
                side,
                alignment=recipe.objective.alignment,
                turns=recipe.data.turns,
                learn=recipe.data.learn,
                skip_ends=(recipe.objective.skip_student_end, recipe.objective.skip_teacher_end),
            )
            for name, side in teachers.items()
        }
        self._work: RowWork = joint_work(pairings, recipe)

    def prepare(self, source: DataSource, key: str, cache: Path) -> Split:
        """Prepare a split, unless ``cache`` holds what these rows, tokenizers and settings give.

        Args:
            source: Source of the examples.
            key: Key of the source in the recipe, e.g. ``data.train``.
            cache: Folder of prepared data.

        Raises:
            UserError: a missing column, an unusable row under ``on_bad_example: error``, or no usable row.
        """
        return prepare_split(source, key, cache, self._work, self._data, facts_of, self._names)


def prepare_split(
    source: DataSource,
    key: str,
    cache: Path,
    work: RowWork,
    data: DataSettings,
    facts: Callable[[Dataset, int], DataFacts],
    teachers: Sequence[str] = (),
) -> Split:
    """Prepare a split in a folder of ``cache`` as `prepare_rows` does, with the facts about its rows.

    Args:
        source: Source of the examples.
        key: Key of the source in the recipe.
        cache: Folder of prepared data.
        work: Work that makes rows of examples.
        data: Columns, and what to do with unusable rows.
        facts: Counts the facts of rows, beside which so many others were left out.
        teachers: Names of the teachers, where each row names the one that judges it.

    Raises:
        UserError: a missing column, an unusable row under ``on_bad_example: error``, or no usable row.
    """

    def note_facts(rows: Dataset, skipped: int, folder: Path) -> None:
        (folder / "facts.json").write_text(json.dumps(asdict(facts(rows, skipped)), indent=1), encoding="utf-8")

    return Split.load(prepare_rows(source, key, cache, work, data, note_facts, teachers))


def joint_work(pairings: Mapping[str, Pairing], recipe: Recipe) -> RowWork:
    """Make the work of preparing rows for all teachers of a recipe, of the work for each by its name."""
    if list(pairings) == [ONLY_TEACHER]:
        return pairings[ONLY_TEACHER]
    common = recipe.objective.combine == "difference"
    return SeveralPairings(pairings, column=recipe.data.columns.teacher, common=common)


class NoteFacts(Protocol):
    """A function that writes facts about rows into the folder they are put in."""

    def __call__(self, rows: Dataset, skipped: int, folder: Path) -> None:
        """Write the facts of ``rows``, of which ``skipped`` were left out before, into ``folder``."""
        ...


def prepare_rows(
    source: DataSource,
    key: str,
    cache: Path,
    work: RowWork,
    data: DataSettings,
    note_facts: NoteFacts | None = None,
    teachers: Sequence[str] = (),
    judge: str | None = None,
) -> Path:
    """Prepare the rows of a source in a folder of ``cache``, unless they are there, and return the folder.

    Beside what ``work`` makes of it, each row has its ``place`` in the user's data.

    Args:
        source: Source of the examples.
        key: Key of the source in the recipe.
        cache: Folder of such folders.
        work: Work that makes rows of examples.
        data: Columns, and what to do with unusable rows.
        note_facts: Called once the rows are there, if given.
        teachers: Names of the teachers, where each row names the one that judges it.
        judge: One of them whose rows alone are prepared; by default all rows are.

    Raises:
        UserError: a missing column, an unusable row under ``on_bad_example: error``, or no usable row.
    """
    rows = load_rows(source, key)
    reader = ExampleReader(data, teachers)
    reader.check(rows, key, answered=work.answered)
    places = row_places(source, source_files(source, key), rows)
    numbers: Sequence[int] = range(len(rows))
    if judge is not None:
        numbers = reader.rows_of(rows, judge)
        rows, places = rows.select(numbers), [places[number] for number in numbers]
        if not numbers:
            raise NoRowsOfJudgeError(
                key, f"no row is judged by teacher {judge!r}", "name another teacher, or correct the data"
            )
    # What a row's judge may be called decides which rows are bad ones.
    judges = {} if judge is None else {"judges": list(teachers)}
    settings = {**reader.identity(), **judges, "on_bad_example": data.on_bad_example, "places": digest_of(places)}
    identity = json.dumps([PREPARED_FORMAT, work.identity(), settings], sort_keys=True)
    name = hashlib.sha256(f"{identity}{content_digest(rows)}".encode()).hexdigest()[:32]

    def build(aside: Path) -> None:
        working = aside / "working"
        working.mkdir()
        usable, problems = _usable(rows, places, numbers, key, working, _Batches(work, reader), data)
        usable.save_to_disk(aside / "rows")
        shutil.rmtree(working)
        note_bad_examples(aside, problems, places)
        noticed = {"examples": len(usable), "counts": counted(usable["notes"])}
        (aside / _NOTES).write_text(json.dumps(noticed), encoding="utf-8")
        if note_facts is not None:
            note_facts(usable, len(problems), aside)

    folder = build_once(cache / name, build)
    # Prepared once or found: whoever uses them is to know.
    noticed = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
    for line in lines_of(noticed["counts"], noticed["examples"]):
        log.warning("%s: %s", key, line)
    return folder


class _Batches:
    """A ``RowWork`` on batches of rows, as ``datasets`` calls it; unusable rows are blank and have a problem."""

    def __init__(self, work: RowWork, reader: ExampleReader) -> None:
        self._work = work
        self._reader = reader
        self.features = Features({**work.features, "problem": Value("string")})

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        number = len(next(iter(batch.values())))
        results: list[dict[str, Any] | str] = [""] * number
        examples: list[tuple[int, Example]] = []
        for place in range(number):
            try:
                row = {name: column[place] for name, column in batch.items()}
                example = self._reader(row) if self._work.answered else self._reader.prompt(row)
                examples.append((place, example))
            except ValueError as error:
                results[place] = str(error)
        for (place, _), result in zip(examples, self._work([example for _, example in examples]), strict=True):
            results[place] = result
        blank = {name: _blank(feature) for name, feature in self.features.items()}
        filled = [blank | ({"problem": _sayable(item)} if isinstance(item, str) else item) for item in results]
        return {name: [_typed(row[name], feature) for row in filled] for name, feature in self.features.items()}


def _usable(
    rows: Dataset,
    places: Sequence[str],
    numbers: Sequence[int],
    key: str,
    working: Path,
    batches: _Batches,
    data: DataSettings,
) -> tuple[Dataset, list[tuple[int, str]]]:
    """Prepare the rows that can be used, and list the others by their places here with what is wrong with them.

    ``numbers`` are those of the rows in the source, by which messages call them.
    """
    with _environment_kept():
        prepared = rows.map(
            batches,
            batched=True,
            batch_size=256,
            remove_columns=rows.column_names,
            features=batches.features,
            load_from_cache_file=False,
            # Not where datasets would put it: a run with other tokenizers may be there at the same time.
            cache_file_name=str(working / "rows.arrow"),
            num_proc=_num_processes(len(rows), data.workers),
            new_fingerprint=hashlib.sha256(f"{rows._fingerprint}{key}".encode()).hexdigest()[:16],
        )
    problems = [(i, problem) for i, problem in enumerate(prepared["problem"]) if problem]
    if problems and data.on_bad_example == "error":
        index, problem = problems[0]
        raise UserError(
            key,
            f"row {numbers[index]}: {problem} ({len(problems)} unusable of {len(prepared)})",
            "repair the row, or leave such rows out with data.on_bad_example=skip",
        )
    prepared = prepared.add_column("place", pa.array(places, pa.string()))
    bad = {index for index, _ in problems}
    if len(bad) == len(prepared):
        raise UserError(key, f"none of {len(prepared)} rows is usable: {problems[0][1]}", "repair the data")
    if bad:
        index, problem = problems[0]
        log.warning(
            "%s: %d of %d rows left out, e.g. row %d: %s", key, len(bad), len(prepared), numbers[index], problem
        )
        prepared = prepared.select([i for i in range(len(prepared)) if i not in bad])
    return prepared.remove_columns("problem"), problems


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Put ``os.environ`` back: ``datasets`` with several processes leaves a copy in its place.

    Whoever holds the first one (rich does, for NO_COLOR) would not hear of later changes.
    """
    environment = os.environ
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003 (the very object that was there)


def _sayable(problem: str) -> str:
    """Return a message that can be written as UTF-8, whatever of an example is in it."""
    return problem.encode("utf-8", "backslashreplace").decode() or "it cannot be used"


def _num_processes(num_rows: int, chosen: int | None) -> int | None:
    """Choose the number of processes for ``datasets``: None is this process alone."""
    # To start a process and hand it both tokenizers takes as long as preparing a thousand rows or two.
    number = chosen or min(num_cores(), num_rows // ROWS_PER_PROCESS)
    return min(number, num_rows) if number > 1 else None


def _blank(feature: Any) -> Any:
    if isinstance(feature, List):
        if feature.feature.dtype == "string":
            return []
        return np.zeros(0, feature.feature.dtype)
    return "" if feature.dtype == "string" else 0


def _typed(value: Any, feature: Any) -> Any:
    """Make an array of a list of numbers: ``datasets`` takes an empty list beside arrays for one of floats."""
    if isinstance(feature, List) and feature.feature.dtype != "string":
        return np.asarray(value, feature.feature.dtype)
    return value


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
