"""Overrides of one of several teachers: ``--set teachers.NAME.key=value``, where the recipe has a list of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from uld_ds.errors import UserError

_LIST = "teachers"


def split_teachers(layers: Sequence[DictConfig]) -> tuple[list[DictConfig], list[Mapping[str, Any]]]:
    """Take what layers say of teachers by their names out of them.

    Args:
        layers: layers of a recipe, later ones winning.

    Returns:
        The layers without that, and it: values of each layer that has some, by the teachers' names.
    """
    rest, by_name = [], []
    for layer in layers:
        plain = OmegaConf.to_container(layer)
        assert isinstance(plain, dict)
        if not isinstance(plain.get(_LIST), dict):
            rest.append(layer)
            continue
        by_name.append(plain.pop(_LIST))
        rest.append(OmegaConf.create(plain))
    return rest, by_name


def with_teachers_changed(recipe: DictConfig, changes: Sequence[Mapping[str, Any]]) -> DictConfig:
    """Return a recipe with other values of some teachers' keys; references in both are still to be resolved.

    Args:
        recipe: the recipe, its layers merged.
        changes: values by the teachers' names, later ones winning; names from the environment are in small letters.

    Raises:
        UserError: there is no teacher of a name, or a value is given for a whole teacher.
    """
    if not changes:
        return recipe
    plain = OmegaConf.to_container(recipe)
    assert isinstance(plain, dict)
    found = plain.get(_LIST)
    teachers = found if isinstance(found, list) else []
    for name, values in ((str(name), values) for change in changes for name, values in change.items()):
        place = _place_of(name, teachers)
        if not isinstance(values, Mapping):
            raise UserError(f"{_LIST}.{name}", f"{values!r} is not a section", f"set a key of it: {_LIST}.{name}.KEY")
        merged = OmegaConf.merge(OmegaConf.create(teachers[place]), OmegaConf.create(dict(values)))
        teachers[place] = OmegaConf.to_container(merged)
    return OmegaConf.create(plain)


def _place_of(name: str, teachers: Sequence[Any]) -> int:
    """Find a teacher in the list by its name."""
    names = [str(own.get("name")) if isinstance(own, Mapping) else None for own in teachers]
    for place, known in enumerate(names):
        if known is not None and name in (known, known.lower()):
            return place
    there = ", ".join(known for known in names if known is not None)
    fix = f"set the keys of one of {there}" if there else "give a list of teachers in the recipe"
    raise UserError(f"{_LIST}.{name}", "is no teacher of the recipe", fix)
