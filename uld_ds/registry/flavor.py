"""The student as an MLflow model: MLflow's transformers flavor, with a pyfunc of our own.

MLflow's pyfunc of a text-generation model takes plain prompts, or chat messages, but not both.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.transformers
from huggingface_hub import ModelCard
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Object, Property
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_ds.models.architectures import is_encoder_decoder
from uld_ds.models.older_readers import adapt_config, adapt_tokenizer, save_tokenizer
from uld_ds.registry import served_student
from uld_ds.registry.served_student import ARGUMENTS, CHAT_FILE, MESSAGES, PARAMETERS, PROMPT, REASONING_NAMES, TOOLS

_CODE = "code"
_LOADER = "uld_ds_served_student"


def signature() -> ModelSignature:
    """Make the pyfunc's signature: messages or a prompt in each row, text out, and the parameters of generation.

    MLflow 3.17 refuses fields of a message that are not named here. It does not check what comes out, which is text
    unless ``return_reasoning`` is asked for.
    """
    texts = [Property(name, DataType.string, required=False) for name in (*REASONING_NAMES, "tool_call_id", "name")]
    # A content is text, a list of parts or null; a call's arguments are any object, or JSON text.
    free = [Property(name, AnyType(), required=False) for name in ("content", "tool_calls")]
    message = Object([Property("role", DataType.string), *free, *texts])
    kinds = {bool: DataType.boolean, int: DataType.long, float: DataType.double}
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(Array(message), MESSAGES, required=False),
                ColSpec(DataType.string, PROMPT, required=False),
                ColSpec(AnyType(), TOOLS, required=False),
                ColSpec(AnyType(), ARGUMENTS, required=False),
            ]
        ),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in PARAMETERS.items()]),
    )


def save_model(
    path: str,
    mlflow_model: Model,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_example: Any,
    pip_requirements: list[str],
    chat: Mapping[str, Any] | None = None,
    model_card: str | None = None,
) -> None:
    """Write the folder of an MLflow model: transformers' flavor and the pyfunc.

    A model with an encoder has the pyfunc alone: transformers has no pipeline for it any more.

    Args:
        path: the folder, not there yet.
        mlflow_model: MLflow's description of the model; gets the flavors.
        model: the student in memory, written from there.
        tokenizer: the student's.
        input_example: a request to the pyfunc.
        pip_requirements: packages with their versions.
        chat: what the served student is to know of its chat template (``TextSide.served_chat``).
        model_card: Markdown with metadata. MLflow would ask the hub for one.
    """
    card = ModelCard(model_card or "", ignore_metadata_errors=True)
    about: dict[str, Any] = {
        "mlflow_model": mlflow_model,
        "signature": signature(),
        "input_example": input_example,
        "pip_requirements": pip_requirements,
    }
    if is_encoder_decoder(model.config):
        _save_with_pyfunc_alone(path, model, tokenizer, chat, card, about)
        return
    mlflow.transformers.save_model(
        transformers_model={"model": model, "tokenizer": tokenizer},
        path=path,
        task="text-generation",
        model_card=card,
        **about,
    )
    # MLflow saves both once more, as the installed transformers does.
    adapt_config(Path(path) / "model")
    adapt_tokenizer(Path(path) / "components" / "tokenizer", tokenizer)
    _write_chat(Path(path), chat)
    code = Path(path) / _CODE
    code.mkdir()
    shutil.copy(served_student.__file__, code / f"{_LOADER}.py")
    pyfunc = mlflow_model.flavors.pop("python_function")
    mlflow.pyfunc.add_to_model(
        mlflow_model, loader_module=_LOADER, data=".", code=_CODE, env=pyfunc.get("env"), model_config=None
    )
    mlflow_model.save(str(Path(path) / MLMODEL_FILE_NAME))


def _save_with_pyfunc_alone(
    path: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat: Mapping[str, Any] | None,
    card: ModelCard,
    about: dict[str, Any],
) -> None:
    """Write the folder of an MLflow model without transformers' flavor, each file where that one would have it."""
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
        data, loader = Path(folder) / "student", Path(folder) / f"{_LOADER}.py"
        model.save_pretrained(data / "model")
        adapt_config(data / "model")
        save_tokenizer(tokenizer, data / "components" / "tokenizer")
        _write_chat(data, chat)
        card.save(data / "model_card.md")
        shutil.copy(served_student.__file__, loader)
        mlflow.pyfunc.save_model(path, loader_module=_LOADER, data_path=str(data), code_paths=[str(loader)], **about)


def _write_chat(folder: Path, chat: Mapping[str, Any] | None) -> None:
    if chat is not None:
        (folder / CHAT_FILE).write_text(json.dumps(chat, ensure_ascii=False, indent=1), encoding="utf-8")
