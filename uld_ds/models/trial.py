"""A student on trial: made without memory for its weights, trainable and exportable before any training begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from uld_ds.errors import UserError, one_line
from uld_ds.models.adapters import describe_adapters, is_adapted, merged, shaped
from uld_ds.models.architectures import auto_class
from uld_ds.models.quantization import check_installed, check_quantizable, quantization_method, quantized_linears
from uld_ds.recipe import StudentSettings
from uld_ds.recipe.models import NO_CODE

_OTHER = "choose a language model that transformers knows, or correct its config.json"


@dataclass(frozen=True)
class TrialStudent:
    """A student as it will be trained, on PyTorch's meta device."""

    model: Any
    """The model, with frozen parameters or adapters."""
    in_four_bits: list[int]
    """Sizes of the matrices that are held in 4 bits."""
    adapters: str | None
    """What is adapted and what is not, for a person; None without adapters."""


def unmade_model(config: PreTrainedConfig, key: str, name: str, **code: Any) -> PreTrainedModel:
    """Make a model of a configuration on PyTorch's meta device, where its weights take no memory.

    Args:
        config: of the model.
        key: where the user gave it, for messages.
        name: what the user called it, for messages.
        **code: options of ``remote_code_options``; by default no code that comes with a model is run.

    Raises:
        UserError: no model can be made of it.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(config, **(code or NO_CODE))
    except Exception as error:  # a bad value, or a library that is missing, surfaces wherever it is first used
        problem = f"{name!r}: no model can be made of it ({one_line(error, kind=True)})"
        fix = "install what it needs, on every node" if isinstance(error, ImportError) else _OTHER
        raise UserError(key, problem, fix) from error
    return model


def try_student(config: PreTrainedConfig, settings: StudentSettings, name: str) -> TrialStudent:
    """Make a student as it will be trained, and export it, both without any weights.

    Args:
        config: of the model that it starts from.
        settings: Student section of a recipe.
        name: what the user called the model, for messages.

    Raises:
        UserError: no model can be made of it, weights that are quantized already, something to freeze or to adapt that
            is not there, or adapters that could not be exported.
    """
    check_installed(settings)
    key = "student.model" if settings.from_config is None else "student.from_config"
    model = unmade_model(config, key, name)
    check_quantizable(settings, model)
    _check_learns(config)
    linears: list[Any] = [model.get_submodule(linear) for linear in quantized_linears(model)]
    in_four_bits = [linear.weight.numel() for linear in linears]
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    adapters = None if settings.lora is None else describe_adapters(model, settings.lora)
    with torch.device("meta"):
        model = shaped(model, settings)
    if is_adapted(model):
        _check_export(model, wanted)
    return TrialStudent(model, in_four_bits if settings.quantize else [], adapters)


def _check_learns(config: PreTrainedConfig) -> None:
    """Check that weights are numbers that an optimizer can change.

    Raises:
        UserError: they are quantized.
    """
    method = quantization_method(config)
    if method is not None:
        problem = f"its weights are quantized ({method}), and cannot learn"
        raise UserError("student.model", problem, "start from the model that it was made of")


def _check_export(model: Any, wanted: dict[str, torch.Size]) -> None:
    """Check that the merged weights of an adapted model are those of the model without adapters.

    Raises:
        UserError: they are others.
    """
    found = {name: tensor.shape for name, tensor in merged(model, model.state_dict()).items()}
    if found != wanted:
        other = sorted(name for name, _ in found.items() ^ wanted.items())
        kind = model.get_base_model().config.model_type
        problem = f"adapters of {kind!r} cannot be merged at export ({', '.join(other[:3])} would be others)"
        raise UserError("student.lora.targets", problem, "leave student.lora out, or name other layers")
