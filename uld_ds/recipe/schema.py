"""The whole configuration of a run, as strict typed models.

A recipe is YAML. Three layers are merged, later ones winning: the file, environment variables
(``ULD_DS__TRAINING__STEPS=100`` sets ``training.steps``) and ``--set training.steps=100``. Values may refer to
the environment with ``${oc.env:NAME}`` or ``${oc.env:NAME,default}``, which are text; a number is
``${oc.decode:${oc.env:NAME}}``. Every key that exists is a field of a section, with its meaning
(the modules beside this one); a key that does not exist is an error that names the nearest one that does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from uld_ds.conversations import KINDS
from uld_ds.errors import UserError
from uld_ds.recipe.base import Strict
from uld_ds.recipe.data import DataSettings
from uld_ds.recipe.infrastructure import (
    ClusterSettings,
    ProfileSettings,
    RegistrySettings,
    RunSettings,
    TrackingSettings,
)
from uld_ds.recipe.models import (
    ONLY_TEACHER,
    NamedTeacherSettings,
    StoreSettings,
    StudentSettings,
    TeacherSettings,
)
from uld_ds.recipe.objective import ObjectiveSettings
from uld_ds.recipe.removed_keys import with_removed_keys
from uld_ds.recipe.renamed_keys import with_former_names
from uld_ds.recipe.rollouts import RolloutSettings, taught
from uld_ds.recipe.teacher_checks import check_combination, check_teachers
from uld_ds.recipe.training import (
    EvaluationSettings,
    GenerationSettings,
    TrainingSettings,
)


class Recipe(Strict):
    run: RunSettings
    teacher: TeacherSettings | None = None
    """The teacher; several are a list in ``teachers``."""
    teachers: list[NamedTeacherSettings] = Field(default_factory=list)
    """Several teachers of one student, each with the keys of ``teacher``, a name and a weight. Instead of
    ``teacher``; once a recipe is loaded, its one teacher is a list of one here, too."""
    student: StudentSettings
    data: DataSettings
    objective: ObjectiveSettings = ObjectiveSettings()
    rollouts: RolloutSettings | None = None
    training: TrainingSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    generation: GenerationSettings = GenerationSettings()
    store: StoreSettings = StoreSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()
    profile: ProfileSettings = ProfileSettings()
    registry: RegistrySettings = RegistrySettings()

    @model_validator(mode="after")
    def _teachers_are_a_list(self) -> Recipe:
        if self.teacher is None:
            check_teachers(self.teachers)
        elif self.teachers:
            raise ValueError(
                "teacher and teachers are both given: put the teacher into the list, or leave out the list"
            )
        else:
            # Frozen for others: a recipe that is being made is nobody's yet.
            self.__dict__["teachers"] = [NamedTeacherSettings.only(self.teacher)]
        return self

    @model_validator(mode="after")
    def _teachers_are_combined(self) -> Recipe:
        own = {} if self.rollouts is None else self.rollouts.weights(self.objective)
        check_combination(self.objective, self.data.columns, [teacher.name for teacher in self.teachers], own)
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the other of ``teacher`` and ``teachers``: what is written can be read, and reads as before."""
        plain: dict[str, Any] = handler(self)
        plain.pop("teachers" if self.teacher is not None else "teacher", None)
        return plain

    @model_validator(mode="after")
    def _batch_divides(self) -> Recipe:
        if self.training.micro_batch_tokens is not None:
            return self
        per_forward = self.training.micro_batch_size * self.cluster.workers
        if self.training.batch_size % per_forward:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is not a multiple of training.micro_batch_size "
                f"{self.training.micro_batch_size} x cluster.workers {self.cluster.workers} = {per_forward}"
            )
        return self

    @model_validator(mode="after")
    def _own_answers_teach_something(self) -> Recipe:
        if self.rollouts is None:
            return self
        if not any(self.rollouts.weights(self.objective).values()):
            raise ValueError(
                "rollouts: the objective has no term but ce, and to imitate its own answers teaches a student nothing: "
                "set rollouts.objective, e.g. {projection: 1.0}"
            )
        # What terms of own answers need, and what excludes them, is as for any other.
        try:
            taught(self.objective, self.rollouts)
        except ValidationError as error:
            context = error.errors(include_url=False)[0].get("ctx", {})
            raise ValueError(f"rollouts.objective, with objective: {context.get('error', error)}") from error
        return self

    @model_validator(mode="after")
    def _choices_have_an_effect(self) -> Recipe:
        self.taught.check_choices()
        return self

    @property
    def taught(self) -> ObjectiveSettings:
        """The objective with every term that given or own answers have a weight for: what must be there for both."""
        return taught(self.objective, self.rollouts)

    @property
    def own_examples(self) -> int:
        """Own answers of the student among the examples of each optimizer step."""
        return 0 if self.rollouts is None else self.rollouts.own_examples(self.training.batch_size)

    @property
    def only_own_answers(self) -> bool:
        """Whether every example of a step is an own answer of the student, so that no given answer is needed."""
        return self.own_examples == self.training.batch_size

    def teacher_named(self, name: str | None = None) -> NamedTeacherSettings:
        """Return the teacher of a name, for whoever needs exactly one; by default the only one.

        Raises:
            UserError: there is none of that name, or there are several and none was named.
        """
        names = [teacher.name for teacher in self.teachers]
        if name is None and len(names) == 1:
            return self.teachers[0]
        if name is None:
            raise UserError("--teacher", f"is missing: the recipe has {len(names)} teachers", _one_of(names))
        if name not in names:
            raise UserError("--teacher", f"{name!r} is no teacher of the recipe", _one_of(names))
        return self.teachers[names.index(name)]

    @property
    def names_of_judges(self) -> list[str]:
        """Names of the teachers, where each row of the data names the one that judges it; else none."""
        return [teacher.name for teacher in self.teachers] if self.objective.combine == "route" else []

    def with_teachers(self, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """Return the recipe with other values of some teachers' keys.

        Args:
            changes: values by their keys, by the teachers' names.
        """
        teachers = [teacher.model_copy(update=dict(changes.get(teacher.name, {}))) for teacher in self.teachers]
        teacher = self.teacher and self.teacher.model_copy(update=dict(changes.get(ONLY_TEACHER, {})))
        return self.model_copy(update={"teacher": teacher, "teachers": teachers})

    def alone_with(self, name: str) -> Recipe:
        """Return the recipe of one of the teachers alone, as if it had been the only one and judged every row."""
        teacher = TeacherSettings.model_validate(
            self.teacher_named(name).model_dump(exclude={"name", "weight"}, exclude_unset=True)
        )
        objective = self.objective.model_copy(update={"combine": "sum"})
        columns = self.data.columns.of_rows()
        data = self.data.model_copy(update={"columns": columns})
        update = {"teacher": teacher, "teachers": [NamedTeacherSettings.only(teacher)]}
        return self.model_copy(update={**update, "objective": objective, "data": data})

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimizer step on one rank; 1 where their number is another in each step."""
        if self.training.micro_batch_tokens is not None:
            return 1
        return self.training.batch_size // (self.training.micro_batch_size * self.cluster.workers)

    @property
    def run_dir(self) -> Path:
        """Folder of everything that belongs to this run."""
        return Path(self.run.storage) / self.run.name

    def to_yaml(self, change: Callable[[Any], Any] = lambda tree: tree) -> str:
        """Write the resolved recipe as YAML; a recipe loaded from it is equal to this one, but for ``change``.

        Args:
            change: changes the recipe as plain values before they are written: what stands for a secret needs quotes.
        """
        return OmegaConf.to_yaml(OmegaConf.create(_escaped(change(self.model_dump(mode="json")))))

    def digest(self) -> str:
        """Compute the sha256 of all that shapes the student (not where the run is, or what things are called)."""
        exclude = {**_MAY_CHANGE_ON_RESUME, "run": {"name", "storage"}, "registry": True}
        # Tags of older runs and versions hold digests: keys count by the names that they had then, and removed ones
        # by the defaults that they had.
        shaping = with_removed_keys(with_former_names(_without_later(self.model_dump(mode="json", exclude=exclude))))
        if self.rollouts is None:
            del shaping["rollouts"]
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    def first_difference(self, other: Recipe) -> str | None:
        """Find the first key whose change makes ``other`` another run, as ``key: mine -> theirs``, or None."""
        mine = dict(_leaves(self.model_dump(mode="json", exclude=_MAY_CHANGE_ON_RESUME)))
        theirs = dict(_leaves(other.model_dump(mode="json", exclude=_MAY_CHANGE_ON_RESUME)))
        for key in mine | theirs:
            if mine.get(key) != theirs.get(key):
                return f"{key}: {mine.get(key)!r} -> {theirs.get(key)!r}"
        return None


# Keys that came later, by section: where they say nothing, digests of runs and versions are those of before.
_LATER: dict[str, dict[str, Any]] = {
    "data": {"learn": list(KINDS), "special_tokens": "control"},
    "teacher": {"template_arguments": {}, "server": None},
    "student": {"template_arguments": {}},
    "training": {"micro_batch_tokens": None},
    "objective": {
        "projection_divergence": "forward_kl",
        "projection_outcomes": "tokens",
        "projection_rows": "all",
        "projection_pick": "teacher",
        "projection_student_ids": 16,
        "completion": 0.0,
        "skip_whitespace_rows": False,
        "combine": "sum",
    },
}
_LATER_OF_SEVERAL: dict[str, Any] = {"server": None}
_LATER_COLUMNS = {"tools": "tools", "template_arguments": "chat_template_kwargs", "teacher": None}


def _without_later(plain: dict[str, Any]) -> dict[str, Any]:
    """Leave out keys that came later, where they have their defaults."""
    kept = {
        name: {key: value for key, value in section.items() if _LATER[name].get(key, ...) != value}
        if name in _LATER
        else section
        for name, section in plain.items()
    }
    if "teachers" in kept:
        kept["teachers"] = [
            {key: value for key, value in own.items() if _LATER_OF_SEVERAL.get(key, ...) != value}
            for own in kept["teachers"]
        ]
    columns = plain["data"]["columns"]
    kept["data"]["columns"] = {key: value for key, value in columns.items() if _LATER_COLUMNS.get(key, ...) != value}
    return kept


# Where a teacher is asked and how fast, and how much memory it takes, but not what it says.
_OF_TEACHER: Any = {
    "max_tokens_per_forward": True,
    "packing": True,
    "server": {"url", "concurrency", "tokens_in_flight", "timeout", "patience"},
}
# Where and how fast a run computes, and how much memory that takes, but not what.
_MAY_CHANGE_ON_RESUME: Any = {
    "run": {"storage"},
    "tracking": True,
    "profile": True,
    "teacher": _OF_TEACHER,
    "teachers": {"__all__": _OF_TEACHER},
    "student": {"gradient_checkpointing", "packing"},
    "evaluation": {"micro_batch_size", "metrics", "words"},
    "generation": True,
    "store": True,
    "rollouts": {"actors"},
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


def _one_of(names: Sequence[str]) -> str:
    return f"name one with --teacher: {', '.join(names)}"


def _escaped(tree: Any) -> Any:
    """Copy plain values with every ``${`` marked as text, not a reference."""
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
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):  # teachers, whose order matters
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}[{number}]")
    else:
        yield prefix, tree
