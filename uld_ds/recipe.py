"""The whole configuration of a run, as strict typed models.

A recipe is YAML. Three layers are merged, later ones winning: the file, environment variables
(``ULD_DS__TRAINING__STEPS=100`` sets ``training.steps``) and ``--set training.steps=100``. Values may refer to
the environment with ``${oc.env:NAME}`` or ``${oc.env:NAME,default}``, which are text; a number is
``${oc.decode:${oc.env:NAME}}``. Every key that exists is a field of a section, with its meaning (recipe_sections.py,
recipe_models.py, recipe_objective.py; this module is their door); a key that does not exist is an error that names the
nearest one that does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError, model_validator

from uld_ds.errors import UserError
from uld_ds.recipe_errors import as_user_error
from uld_ds.recipe_models import (
    CodecSettings,
    LoraSettings,
    ModelSettings,
    RemoteCodeSettings,
    StoreSettings,
    StudentSettings,
    TeacherSettings,
    TrainedTokenizerSettings,
)
from uld_ds.recipe_objective import LinearSchedule, ObjectiveSettings, WarmupSchedule
from uld_ds.recipe_sections import (
    ClusterSettings,
    ColumnSettings,
    DataSettings,
    DataSource,
    DType,
    EvaluationSettings,
    FilesSource,
    GenerationSettings,
    GeneratorSource,
    HubSource,
    OptimizerSettings,
    ProfileSettings,
    RegistrySettings,
    RunSettings,
    ScheduleSettings,
    Strict,
    TrackingSettings,
    TrainingSettings,
)
from uld_ds.weight_schedule import check_schedule

__all__ = [
    "ENVIRONMENT_PREFIX",
    "ClusterSettings",
    "CodecSettings",
    "ColumnSettings",
    "DType",
    "DataSettings",
    "DataSource",
    "EvaluationSettings",
    "FilesSource",
    "GenerationSettings",
    "GeneratorSource",
    "HubSource",
    "LinearSchedule",
    "LoraSettings",
    "ModelSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "ProfileSettings",
    "Recipe",
    "RegistrySettings",
    "RemoteCodeSettings",
    "RunSettings",
    "ScheduleSettings",
    "StoreSettings",
    "StudentSettings",
    "TeacherSettings",
    "TrackingSettings",
    "TrainedTokenizerSettings",
    "TrainingSettings",
    "WarmupSchedule",
    "load_recipe",
    "parse_recipe",
]

ENVIRONMENT_PREFIX = "ULD_DS__"


class Recipe(Strict):
    run: RunSettings
    teacher: TeacherSettings
    student: StudentSettings
    data: DataSettings
    objective: ObjectiveSettings = ObjectiveSettings()
    training: TrainingSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    generation: GenerationSettings = GenerationSettings()
    store: StoreSettings = StoreSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()
    profile: ProfileSettings = ProfileSettings()
    registry: RegistrySettings = RegistrySettings()

    @model_validator(mode="after")
    def _batch_divides(self) -> Recipe:
        per_forward = self.training.micro_batch_size * self.cluster.workers
        if self.training.batch_size % per_forward:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is not a multiple of training.micro_batch_size "
                f"{self.training.micro_batch_size} x cluster.workers {self.cluster.workers} = {per_forward}"
            )
        return self

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimizer step on one rank."""
        return self.training.batch_size // (self.training.micro_batch_size * self.cluster.workers)

    @property
    def run_dir(self) -> Path:
        """Where everything of this run lives."""
        return Path(self.run.storage) / self.run.name

    def to_yaml(self, change: Callable[[Any], Any] = lambda tree: tree) -> str:
        """The resolved recipe; ``Recipe`` loaded from it is equal to this one, but for what ``change`` makes of it.

        Args:
            change: of the recipe as plain values, before they are written: what stands for a secret needs quotes.
        """
        return OmegaConf.to_yaml(OmegaConf.create(_escaped(change(self.model_dump(mode="json")))))

    def digest(self) -> str:
        """sha256 over everything that shapes the student (not where the run is, or what things are called)."""
        exclude = {**_MAY_CHANGE_ON_RESUME, "run": {"name", "storage"}, "registry": True}
        shaping = self.model_dump(mode="json", exclude=exclude)
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    def first_difference(self, other: Recipe) -> str | None:
        """The first key whose change makes ``other`` another run, as ``key: mine -> theirs``."""
        mine = dict(_leaves(self.model_dump(mode="json", exclude=_MAY_CHANGE_ON_RESUME)))
        theirs = dict(_leaves(other.model_dump(mode="json", exclude=_MAY_CHANGE_ON_RESUME)))
        for key in mine | theirs:
            if mine.get(key) != theirs.get(key):
                return f"{key}: {mine.get(key)!r} -> {theirs.get(key)!r}"
        return None


# Where and how fast a run computes, and how much memory that takes, but not what.
_MAY_CHANGE_ON_RESUME: Any = {
    "run": {"storage"},
    "tracking": True,
    "profile": True,
    "teacher": {"max_tokens_per_forward"},
    "student": {"gradient_checkpointing"},
    "evaluation": {"micro_batch_size", "metrics"},
    "generation": True,
    "store": True,
    "cluster": {
        "workers",
        "cpus_per_worker",
        "threads_per_worker",
        "placement_strategy",
        "accelerator_type",
        "resources_per_worker",
        "labels",
        "wait_seconds",
        "grace_seconds",
        "max_failures",
        "hang_seconds",
        "dashboard_port",
    },
    "training": {"checkpoint_every", "keep_checkpoints", "max_skipped_steps", "loss_spike"},
    "data": {"workers"},
}


def _escaped(tree: Any) -> Any:
    """The same with every ``${`` marked as text, not a reference."""
    if isinstance(tree, dict):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    if isinstance(tree, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", tree)
    return tree


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, environment: Mapping[str, str] | None = None
) -> Recipe:
    """Reads a recipe and merges environment and overrides over it.

    Args:
        path: a YAML file.
        overrides: ``a.b=c`` strings; values are YAML.
        environment: variables whose names begin with ``ULD_DS__`` override the file. Default: this process's.

    Raises:
        UserError: no such file, not YAML, a malformed override, an unknown key, a bad value.
    """
    variables = os.environ if environment is None else environment
    layers = [
        _file_layer(Path(path)),
        *(_layer(name, *item) for name, *item in _environment_overrides(variables)),
        *(_layer("--set", *_split(override)) for override in overrides),
    ]
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*layers), resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(error.full_key or "recipe", reason, "correct the reference, or set what it names") from error
    assert isinstance(merged, dict)
    return parse_recipe({str(key): value for key, value in merged.items()})


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Validates a mapping as a recipe.

    Raises:
        UserError: naming the first bad key, its value and the fix.
    """
    try:
        recipe = Recipe.model_validate(dict(tree))
    except ValidationError as error:
        raise as_user_error(error, tree, Recipe) from error
    if recipe.training.steps is not None:  # how many an epoch has is known when the data is
        check_schedule(recipe.objective, recipe.training.steps)
    return recipe


def _file_layer(file: Path) -> DictConfig:
    if not file.is_file():
        raise UserError("recipe", f"no file {str(file)!r}", "give the path of a recipe's YAML file")
    try:
        layer = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError("recipe", f"{str(file)!r} is not YAML ({_one_line(error)})", "correct the file") from error
    if not isinstance(layer, DictConfig):
        raise UserError("recipe", f"{str(file)!r} holds a list", "a recipe is a mapping of sections")
    return layer


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError("--set", f"{override!r} is not KEY=VALUE", "write e.g. --set training.steps=100")
    return key, value


def _layer(origin: str, key: str, value: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([f"{key}={value}"])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(origin, f"{value!r} for {key} is not YAML ({_one_line(error)})", "quote it") from error


def _environment_overrides(variables: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Name of the variable, the recipe's key, the value."""
    overrides = []
    for name in sorted(variables):
        parts = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if not all(parts):
            raise UserError(name, "names no key of a recipe", f"write e.g. {ENVIRONMENT_PREFIX}TRAINING__STEPS")
        overrides.append((name, ".".join(parts), variables[name]))
    return overrides


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
