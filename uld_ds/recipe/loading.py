"""Loading of a recipe: file, environment variables and overrides, merged and validated."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from uld_ds.errors import UserError, message_lines, one_line
from uld_ds.recipe.overrides import check_numbers, layer_of
from uld_ds.recipe.removed_keys import without_removed_keys
from uld_ds.recipe.renamed_keys import with_current_names
from uld_ds.recipe.rollout_checks import check_rollout_settings
from uld_ds.recipe.schema import Recipe
from uld_ds.recipe.served_checks import check_served_teachers
from uld_ds.recipe.teacher_checks import check_one_section
from uld_ds.recipe.teacher_overrides import split_teachers, with_teachers_changed
from uld_ds.recipe.validation_errors import as_user_error

ENVIRONMENT_PREFIX = "ULD_DS__"


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda tree: tree,
) -> Recipe:
    """Read a recipe, merge environment variables and overrides over it, and validate the result.

    Args:
        path: a YAML file.
        overrides: ``a.b=c`` strings; values are YAML, and text where the key takes text (see ``overrides``).
        environment: variables whose names begin with ``ULD_DS__`` override the file. Default: this process's.
        change: Changes the recipe as plain values before it is validated, as the verb that loads it needs it.

    Raises:
        UserError: no such file, not YAML, a malformed override, an unknown key, a bad value.
    """
    variables = os.environ if environment is None else environment
    of_environment = [layer_of(name, *item) for name, *item in _environment_overrides(variables)]
    layers = [
        _file_layer(Path(path)),
        *of_environment,
        *(layer_of("--set", *_split(override)) for override in overrides),
    ]
    try:
        # Variables have no order: in them, both names of one key contradict each other.
        _with_current_names(OmegaConf.merge({}, *of_environment))
        # Renamed before it is merged, an override by either name wins over the file's key by either name.
        named, of_teachers = split_teachers([_with_current_names(layer) for layer in layers])
        whole = OmegaConf.merge(*named)
        assert isinstance(whole, DictConfig)
        merged = OmegaConf.to_container(with_teachers_changed(whole, of_teachers), resolve=True)
    except OmegaConfBaseException as error:
        reason = message_lines(error)[0]
        raise UserError(error.full_key or "recipe", reason, "correct the reference, or set what it names") from error
    assert isinstance(merged, dict)
    return parse_recipe(change({str(key): value for key, value in merged.items()}))


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Validate a mapping as a recipe.

    Args:
        tree: sections by name, as plain values; keys may have their former names, and removed ones their defaults.

    Raises:
        UserError: names a bad key, its value and the fix.
    """
    tree = without_removed_keys(with_current_names(tree))
    check_one_section(tree)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise as_user_error(error, tree, Recipe) from error
    check_rollout_settings(recipe)
    check_served_teachers(recipe)
    return recipe


def _with_current_names(layer: Any) -> Any:
    """Rename the keys of a layer that have an old name, its references unresolved; else return the layer itself."""
    plain = OmegaConf.to_container(layer)
    assert isinstance(plain, dict)
    renamed = with_current_names(plain)
    return layer if renamed == plain else OmegaConf.create(renamed)


def _file_layer(file: Path) -> DictConfig:
    if not file.is_file():
        raise UserError("recipe", f"no file {str(file)!r}", "give the path of a recipe's YAML file")
    try:
        layer = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError("recipe", f"{str(file)!r} is not YAML ({one_line(error, None)})", "correct the file") from error
    if not isinstance(layer, DictConfig):
        raise UserError("recipe", f"{str(file)!r} holds a list", "a recipe is a mapping of sections")
    check_numbers(file.read_text(encoding="utf-8"))
    return layer


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError("--set", f"{override!r} is not KEY=VALUE", "write e.g. --set training.steps=100")
    return key, value


def _environment_overrides(variables: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """List the overrides among environment variables: name of the variable, dotted key of the recipe, value."""
    overrides = []
    for name in sorted(variables):
        parts = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if not all(parts):
            raise UserError(name, "names no key of a recipe", f"write e.g. {ENVIRONMENT_PREFIX}TRAINING__STEPS")
        overrides.append((name, ".".join(parts), variables[name]))
    return overrides
