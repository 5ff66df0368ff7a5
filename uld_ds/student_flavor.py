"""How a student is written as an MLflow model: MLflow's transformers flavor, with a pyfunc of our own.

MLflow's pyfunc of a text-generation model takes plain prompts, or chat messages, but not both.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.transformers
from huggingface_hub import ModelCard
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_ds import served_student
from uld_ds.served_student import GENERATION, MESSAGES, PROMPT

_CODE = "code"
_LOADER = "uld_ds_served_student"


def signature() -> ModelSignature:
    """Of the pyfunc: messages or a prompt in each row, text out."""
    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    kinds = {bool: DataType.boolean, int: DataType.long, float: DataType.double}
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(Array(message), MESSAGES, required=False),
                ColSpec(DataType.string, PROMPT, required=False),
            ]
        ),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in GENERATION.items()]),
    )


def save_model(
    path: str,
    mlflow_model: Model,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_example: Any,
    pip_requirements: list[str],
    model_card: str | None = None,
) -> None:
    """Writes the folder of an MLflow model.

    Args:
        path: the folder, not there yet.
        mlflow_model: gets the flavors.
        model: in memory, written from there.
        tokenizer: its own.
        input_example: for the pyfunc.
        pip_requirements: pinned.
        model_card: Markdown with metadata. MLflow would ask the hub for one.
    """
    mlflow.transformers.save_model(
        transformers_model={"model": model, "tokenizer": tokenizer},
        path=path,
        task="text-generation",
        mlflow_model=mlflow_model,
        signature=signature(),
        input_example=input_example,
        pip_requirements=pip_requirements,
        model_card=ModelCard(model_card or "", ignore_metadata_errors=True),
    )
    code = Path(path) / _CODE
    code.mkdir()
    shutil.copy(served_student.__file__, code / f"{_LOADER}.py")
    pyfunc = mlflow_model.flavors.pop("python_function")
    mlflow.pyfunc.add_to_model(
        mlflow_model, loader_module=_LOADER, data=".", code=_CODE, env=pyfunc.get("env"), model_config=None
    )
    mlflow_model.save(str(Path(path) / MLMODEL_FILE_NAME))
