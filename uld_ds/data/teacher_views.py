"""Columns of prepared rows of one student with several teachers, and the view of them that each teacher has.

A row has the student's side once. What each teacher adds to it (its own side, the segments that it shares with the
student, the digest of the conversation as it is shown to it) stands in columns with the teacher's name before them:
``NAME.teacher_ids``, ``NAME.student_segments``. ``view_of`` makes of these rows those of a run with that teacher alone,
so that whoever reads one teacher's side needs to know of no others. A row that a teacher does not judge has nothing in
its columns. Rows of a recipe with one teacher are such a view already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, Features

from uld_ds.data.pairing import FEATURES
from uld_ds.recipe.models import ONLY_TEACHER

OF_TEACHER = (
    *(name for name in FEATURES if name.startswith("teacher_")),
    "student_segments",
    "student_segment_stops",
    "digest",
)
"""Columns of a prepared row that each teacher has for itself."""


def features_of(names: Sequence[str]) -> Features:
    """List the columns of prepared rows of some teachers; of the only one, without a name before them."""
    if list(names) == [ONLY_TEACHER]:
        return FEATURES
    whole = {name: feature for name, feature in FEATURES.items() if name not in OF_TEACHER or name == "digest"}
    return Features({**whole, **{f"{own}.{name}": FEATURES[name] for own in names for name in OF_TEACHER}})


def judges(rows: Dataset) -> list[str]:
    """List the names of the teachers that prepared rows are of, in order; of the only one, ``teacher``."""
    suffix = ".teacher_length"
    found = [name.removesuffix(suffix) for name in rows.column_names if name.endswith(suffix)]
    return found or [ONLY_TEACHER]


def view_of(rows: Dataset, teacher: str) -> Dataset:
    """Return prepared rows as those of one of their teachers alone; those of an only teacher are that already."""
    own = {f"{teacher}.{name}": name for name in OF_TEACHER if f"{teacher}.{name}" in rows.column_names}
    if not own:
        return rows
    kept = [name for name in rows.column_names if "." not in name and name not in own.values()]
    return rows.select_columns([*kept, *own]).rename_columns(own)


def as_judged(row: dict[str, Any], teacher: str) -> dict[str, Any]:
    """Return one prepared row as that of one of its teachers alone."""
    prefix = f"{teacher}."
    return {**row, **{name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}}
