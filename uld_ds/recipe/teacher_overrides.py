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


def with_teachers_changed(tree: dict[str, Any], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a recipe with other values of some teachers' keys.

    Args:
        tree: the recipe as plain values.
        changes: values by the teachers' names, later ones winning; names from the environment are in small letters.

    Raises:
        UserError: there is no teacher of a name.
    """
    for change in changes:
        teachers = [dict(own) for own in tree.get(_LIST) or [] if isinstance(own, Mapping)]
        names = [str(own.get("name")) for own in teachers]
        for name, values in change.items():
            place = next((n for n, known in enumerate(names) if name in (known, known.lower())), None)
            if place is None or not isinstance(values, Mapping):
                known = (
                    f"set the keys of one of {', '.join(names)}" if names else "give a list of teachers in the recipe"
                )
                raise UserError(f"{_LIST}.{name}", "is no teacher of the recipe", known)
            merged = OmegaConf.merge(OmegaConf.create(teachers[place]), OmegaConf.create(dict(values)))
            found = OmegaConf.to_container(merged, resolve=True)
            assert isinstance(found, dict)
            teachers[place] = {str(key): value for key, value in found.items()}
        tree = tree | {_LIST: teachers}
    return tree
