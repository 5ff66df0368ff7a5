"""A student's trainable parameters: those frozen by name, and low-rank adapters beside a frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from uld_ds.errors import UserError, one_line
from uld_ds.models.quantization import dequantized, is_quantized, is_transposed
from uld_ds.recipe import LoraSettings, StudentSettings

ADAPTER = "default"
# What PEFT's wrapper puts before the names of the model it wraps.
_WRAPPED = "base_model.model."


def shaped(model: Any, settings: StudentSettings) -> Any:
    """Freeze some of a model, or wrap it with adapters, as the recipe says.

    Raises:
        UserError: parameters to freeze, or layers to adapt, that are not there.
    """
    freeze(model, settings.freeze)
    return model if settings.lora is None else with_adapters(model, settings.lora)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters whose names match one of some patterns.

    Args:
        model: Student; changed in place.
        patterns: Patterns of parameters' names, e.g. ``model.layers.0.*``.

    Raises:
        UserError: a pattern that names none, or nothing is left to learn.
    """
    # A matrix that is embeddings and output head has two names.
    named = list(model.named_parameters(remove_duplicate=False))
    found: dict[int, nn.Parameter] = {}
    for pattern in patterns:
        matching = {id(parameter): parameter for name, parameter in named if fnmatchcase(name, pattern)}
        if not matching:
            like = f"{named[0][0]!r}, {named[-1][0]!r}"
            raise UserError("student.freeze", f"{pattern!r} names no parameter", f"they have names like {like}")
        found |= matching
    if len(found) == len({id(parameter) for _, parameter in named}):
        raise UserError("student.freeze", f"{list(patterns)} leaves nothing to learn", "freeze less")
    for parameter in found.values():
        parameter.requires_grad_(False)


def with_adapters(model: Any, settings: LoraSettings) -> Any:
    """Wrap a model by PEFT: all its own parameters frozen, with low-rank adapters to learn.

    (Hu et al., arXiv 2106.09685: a linear layer's ``W x`` becomes ``W x + alpha / rank * B A x``, with B zero.)

    Raises:
        UserError: PEFT is not installed, or there are no such layers.
    """
    if find_spec("peft") is None:
        raise UserError("student.lora", "PEFT is not installed", "pip install 'uld-ds[lora]', on every node")
    from peft import LoraConfig, get_peft_model

    key = "student.lora.targets"
    try:
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
            target_modules=settings.targets,
            lora_dropout=settings.dropout,
            bias="none",
        )
        wrapped = get_peft_model(model, config, adapter_name=ADAPTER)
    except ValueError as error:  # PEFT's word for names that nothing has
        linear = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)})
        problem = f"{settings.targets!r} cannot be adapted ({one_line(error)})"
        raise UserError(key, problem, f"choose among {', '.join(linear)}, or all-linear") from error
    base: Any = wrapped.get_base_model()
    if base.config.get_text_config().tie_word_embeddings and hasattr(base.get_output_embeddings(), "lora_A"):
        problem = "the output head is one matrix with the embeddings, which would not change with it"
        raise UserError(key, problem, "leave the head out")
    return wrapped


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def is_adapted(model: object) -> bool:
    """Tell whether a model has adapters of ``with_adapters``."""
    return hasattr(model, "peft_config")


def merged(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge the weights of adapters into those of their base: in what is returned, nothing is left of adapters.

    Of a base in 4 bits they are what these stand for, not what it was made of: adapters have learned beside those.

    Args:
        model: Model of ``with_adapters``; its own weights may be in shards.
        weights: All weights, whole, by the wrapped model's names.

    Returns:
        Weights by the names of ``model.get_base_model()`` without adapters, in the types they had.
    """
    plain = {
        name.removeprefix(_WRAPPED).replace(".base_layer.", "."): tensor
        for name, tensor in weights.items()
        if ".lora_" not in name
    }
    base = model.get_base_model()
    if is_quantized(base):
        plain = dequantized(base, plain)
    for name, layer in base.named_modules():
        if ADAPTER in getattr(layer, "lora_A", {}):
            # [R, in] and [out, R]
            down, up = (weights[f"{_WRAPPED}{name}.lora_{part}.{ADAPTER}.weight"].float() for part in "AB")
            # Some architectures keep their matrices transposed.
            transposed = layer.fan_in_fan_out or is_transposed(layer.base_layer)
            delta = layer.scaling[ADAPTER] * (down.T @ up.T if transposed else up @ down)
            weight = plain[f"{name}.weight"]
            plain[f"{name}.weight"] = (weight.float() + delta.to(weight.device)).to(weight.dtype)
    return plain
