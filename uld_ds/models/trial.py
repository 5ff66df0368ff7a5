"""A student on trial: made without memory for its weights, trainable and exportable before any training begins."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from uld_ds.errors import UserError, one_line
from uld_ds.models.adapters import describe_adapters, is_adapted, merged, output_head_name, shaped
from uld_ds.models.architectures import DTYPES, auto_class, is_encoder_decoder
from uld_ds.models.quantization import check_installed, check_quantizable, quantization_method, quantized_linears
from uld_ds.models.weight_files import tensors, weight_files
from uld_ds.recipe import DType, StudentSettings
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

    def weight_bytes(self, precision: DType) -> int:
        """Compute the bytes of its weights in a precision, as if none were in 4 bits."""
        return sum(weight.numel() for weight in self.model.parameters()) * DTYPES[precision].itemsize


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


def with_own_head(config: PreTrainedConfig, folder: Path, key: str, **code: Any) -> PreTrainedConfig:
    """Return a configuration that says of the output head what transformers makes of the files.

    A head that the files hold beside the embeddings, and that differs from them, is one of its own, whatever
    ``tie_word_embeddings`` says. Models with an encoder keep theirs (``Pretrained.load`` leaves it, too).

    Args:
        config: of the model.
        folder: of the model; a hub id's is not here, and its configuration is taken at its word.
        key: where the user gave it, for messages.
        **code: options of ``remote_code_options``.

    Raises:
        UserError: no model can be made of it, or its files are damaged.
    """
    if is_encoder_decoder(config) or not folder.is_dir() or quantization_method(config) is not None:
        return config
    model = unmade_model(config, key, str(folder), **code)
    named: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    head = f"{output_head_name(model)}.weight"
    files = weight_files(folder, key, getattr(config, "transformers_weights", None)) if head in named else []
    places = {name: file for file in files for name in tensors(file, key)}
    if not {head, named.get(head)} <= places.keys():
        return config
    own, embeddings = (_read(places[name], name) for name in (head, named[head]))
    if torch.equal(own, embeddings):
        return config
    config = copy.deepcopy(config)
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = False
    return config


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor


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
