"""Checks of a recipe's teachers: that there are some, each with a name of its own, and that they can be combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uld_ds.errors import UserError
from uld_ds.recipe.data import ColumnSettings
from uld_ds.recipe.models import ONLY_TEACHER, NamedTeacherSettings
from uld_ds.recipe.objective import LOSS_TERMS, ObjectiveSettings

# Facts of a teacher, among which the teachers' names stand in a version's lineage, and parts of metrics' names.
_TAKEN = {"teachers", "model", "revision", "digest", "tokenizer_digest", "weight", "store", "loss", "own"}


def check_one_section(tree: Mapping[str, Any]) -> None:
    """Check that a recipe's plain values name teachers in one place, before anything is said of what is in it.

    Raises:
        UserError: there are both ``teacher`` and a list of ``teachers``; a key of one of these is set by its name.
    """
    teachers = tree.get("teachers")
    if tree.get(ONLY_TEACHER) is None or not isinstance(teachers, list) or not teachers:
        return
    names = [own["name"] for own in teachers if isinstance(own, Mapping) and isinstance(own.get("name"), str)]
    by_name = f"; a key of one in the list is set by its name: teachers.{names[0]}.KEY" if names else ""
    raise UserError(
        ONLY_TEACHER,
        "and teachers are both given",
        f"put the teacher into the list, or leave out one of both{by_name}",
    )


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
        # Variables of the environment, and some file systems, do not tell them apart.
        if other := next((other for other in names if other != name and other.lower() == name.lower()), None):
            raise ValueError(f"teachers: the names {name!r} and {other!r} differ in capitals alone: choose another")
        if name == ONLY_TEACHER:
            raise ValueError(f"teachers: the name {name!r} is that of the section {ONLY_TEACHER}: choose another")
        if name in _TAKEN or name in LOSS_TERMS:
            raise ValueError(
                f"teachers: the name {name!r} is that of a metric or of a fact about a teacher: choose another"
            )


def check_combination(
    objective: ObjectiveSettings, columns: ColumnSettings, names: Sequence[str], own: Mapping[str, float]
) -> None:
    """Check that ``objective.combine`` goes with the teachers, with the terms, and with the columns of the data.

    Args:
        objective: the recipe's objective.
        columns: the recipe's ``data.columns``.
        names: names of the teachers, in order.
        own: weights of the terms for the student's own answers; empty without rollouts.

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
        _check_difference(objective, names, own)


def _check_difference(objective: ObjectiveSettings, names: Sequence[str], own: Mapping[str, float]) -> None:
    if len(names) != 2:
        raise ValueError(
            f"objective.combine 'difference' needs two teachers, the strong one first, and there are {len(names)}"
        )
    weights = {f"objective.{term.key}": getattr(objective, term.key) for term in objective.weighed_terms}
    weights |= {f"rollouts.objective.{key}": weight for key, weight in own.items() if weight}
    others = [key for key in weights if key.rpartition(".")[2] not in ("ce", "likelihood")]
    if others or not any(key.endswith(".likelihood") for key in weights):
        wrong = f"{others[0]} {weights[others[0]]}" if others else "objective.likelihood 0"
        raise ValueError(
            f"objective.combine 'difference' is of likelihoods alone, and has no meaning with {wrong}: give likelihood "
            "a weight, and no other term but ce"
        )
