"""Recipes: the whole configuration of a run, as strict typed models."""

from uld_ds.recipe.base import DType, TeacherDType
from uld_ds.recipe.data import (
    ColumnSettings,
    DataSettings,
    DataSource,
    FilesSource,
    GeneratorSource,
    HubSource,
    SpecialTokens,
)
from uld_ds.recipe.infrastructure import (
    ClusterSettings,
    ProfileSettings,
    RegistrySettings,
    RunSettings,
    TrackingSettings,
)
from uld_ds.recipe.loading import ENVIRONMENT_PREFIX, load_recipe, parse_recipe
from uld_ds.recipe.models import (
    CodecSettings,
    LoraSettings,
    ModelSettings,
    NamedTeacherSettings,
    RemoteCodeSettings,
    StoreSettings,
    StudentSettings,
    TeacherSettings,
    TrainedTokenizerSettings,
)
from uld_ds.recipe.objective import ObjectiveSettings
from uld_ds.recipe.schema import Recipe
from uld_ds.recipe.server import ServerSettings
from uld_ds.recipe.training import (
    EvaluationSettings,
    GenerationSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainingSettings,
)

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
    "LoraSettings",
    "ModelSettings",
    "NamedTeacherSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "ProfileSettings",
    "Recipe",
    "RegistrySettings",
    "RemoteCodeSettings",
    "RunSettings",
    "ScheduleSettings",
    "ServerSettings",
    "SpecialTokens",
    "StoreSettings",
    "StudentSettings",
    "TeacherDType",
    "TeacherSettings",
    "TrackingSettings",
    "TrainedTokenizerSettings",
    "TrainingSettings",
    "load_recipe",
    "parse_recipe",
]
