"""Checks of a recipe's teachers: that there are some, each with a name of its own, and that they can be combined."""

from __future__ import annotations

from collections.abc import Sequence

from uld_ds.recipe.data import ColumnSettings
from uld_ds.recipe.models import ONLY_TEACHER, NamedTeacherSettings
from uld_ds.recipe.objective import ObjectiveSettings


def check_teachers(teachers: Sequence[NamedTeacherSettings]) -> None:
    """Check the list that a recipe gives in ``teachers``.

    Raises:
        ValueError: it is empty, or a name is not its teacher's own.
    """
    if not teachers:
        raise ValueError("teacher is missing: name one there, or several in teachers")
    names = [teacher.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"teachers: {names.count(name)} of them have the name {name!r}: each needs its own")
        if name == ONLY_TEACHER:
            raise ValueError(f"teachers: the name {name!r} is that of the section {ONLY_TEACHER}: choose another")


def check_combination(objective: ObjectiveSettings, columns: ColumnSettings, names: Sequence[str]) -> None:
    """Check that ``objective.combine`` goes with the teachers, with the terms, and with the columns of the data.

    Args:
        objective: the recipe's objective.
        columns: the recipe's ``data.columns``.
        names: names of the teachers, in order.

    Raises:
        ValueError: it does not.
    """
    combine = objective.combine
    if combine != "sum" and len(names) == 1:
        raise ValueError(f"objective.combine {combine!r} needs several teachers, and there is one: {names[0]}")
    if combine == "route" and columns.teacher is None:
        raise ValueError("objective.combine 'route' needs data.columns.teacher: the column that holds a teacher's name")
    if combine != "route" and columns.teacher is not None:
        raise ValueError(f"data.columns.teacher {columns.teacher!r} has no effect with objective.combine {combine!r}")
    if combine == "difference":
        _check_difference(objective, names)


def _check_difference(objective: ObjectiveSettings, names: Sequence[str]) -> None:
    if len(names) != 2:
        raise ValueError(
            f"objective.combine 'difference' needs two teachers, the strong one first, and there are {len(names)}"
        )
    others = [term.key for term in objective.weighed_terms if term.key not in ("ce", "likelihood")]
    if others or not objective.likelihood:
        wrong = f"objective.{others[0]} {getattr(objective, others[0])}" if others else "objective.likelihood 0"
        raise ValueError(
            f"objective.combine 'difference' is of likelihoods alone, and has no meaning with {wrong}: give likelihood "
            "a weight, and no other term but ce"
        )
