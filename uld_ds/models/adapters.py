"""A student's trainable parameters: those frozen by name, and low-rank adapters beside a frozen model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from uld_ds.errors import UserError, one_line
from uld_ds.models.quantization import dequantized, is_linear, is_quantized, is_transposed
from uld_ds.recipe import LoraSettings, StudentSettings

ADAPTER = "default"
# What PEFT's wrapper puts before the names of the model it wraps.
_WRAPPED = "base_model.model."
_TARGETS = "student.lora.targets"
_READ_PAST_THEM = {"dt_proj", "out_proj"}


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
        UserError: PEFT is not installed, or a target is no layer, or one whose adapter could not be exported.
    """
    if find_spec("peft") is None:
        raise UserError("student.lora", "PEFT is not installed", "pip install 'uld-ds[lora]', on every node")
    from peft import LoraConfig, get_peft_model

    chosen = adapted_layers(model, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        target_modules=chosen,
        lora_dropout=settings.dropout,
        bias="none",
    )
    try:
        with _names_taken_as_they_are(model.config):
            wrapped = get_peft_model(model, config, adapter_name=ADAPTER)
    except ValueError as error:  # layers that PEFT knows it cannot adapt
        problem = f"{settings.targets!r} cannot be adapted ({one_line(error)})"
        raise UserError(_TARGETS, problem, f"choose among {_names(adaptable_layers(model))}") from error
    adapted = [name for name, part in wrapped.get_base_model().named_modules() if hasattr(part, "lora_A")]
    assert sorted(adapted) == sorted(chosen), "PEFT has adapted other layers than it was given"
    return wrapped


def adapted_layers(model: Any, settings: LoraSettings) -> list[str]:
    """List the names of the layers that get an adapter, in the model's order.

    Raises:
        UserError: a target is the name of no layer, or of one whose adapter could not be exported: only those of linear
            layers are merged.
    """
    head, linear = output_head_name(model), adaptable_layers(model)
    is_tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    if settings.targets == "all-linear":
        chosen = [name for name in linear if name != head]
        if not chosen:
            problem = f"{model.config.model_type!r} has no linear layer but its output head"
            raise UserError(_TARGETS, f"'all-linear': {problem}", "leave student.lora out")
        return chosen
    found: set[str] = set()
    for target in settings.targets:
        matching = {name for name in linear if _is_called(name, target)}
        if not matching:
            others = [name for name in linear if not (is_tied and name == head)]
            fix = f"choose among {_names(others)}, or write all-linear without brackets"
            raise UserError(_TARGETS, f"{target!r} {_no_layer(model, target)}", fix)
        found |= matching
    if is_tied and head in found:
        problem = "the output head is one matrix with the embeddings, which would not change with it"
        raise UserError(_TARGETS, problem, "leave the head out")
    return [name for name in linear if name in found]


def adaptable_layers(model: nn.Module) -> list[str]:
    """List the names of the linear layers, the output head included: those whose adapters learn and can be merged.

    Not those that compute something else than a product: what a router adds to it, PEFT does not know. Nor those of
    state-space layers whose weights are read past them (``dt_proj`` and ``out_proj`` in transformers 5.23).
    """
    return [name for name, part in model.named_modules() if is_linear(part) and not _is_read_past(model, name)]


def _is_read_past(model: nn.Module, name: str) -> bool:
    owner, _, own = name.rpartition(".")
    return own in _READ_PAST_THEM and hasattr(model.get_submodule(owner), "A_log")


def output_head_name(model: Any) -> str | None:
    """Find the name of the module that makes logits; None where a model has none."""
    head = model.get_output_embeddings()
    return next((name for name, part in model.named_modules() if part is head), None)


def describe_adapters(model: Any, settings: LoraSettings) -> str:
    """Say which layers get an adapter, and which matrices do not.

    Args:
        model: Model without adapters; its weights need not exist.
        settings: Section ``student.lora``.

    Raises:
        UserError: as ``adapted_layers``.
    """
    chosen = adapted_layers(model, settings)
    taken = {f"{name}.weight" for name in chosen}
    others = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and name not in taken and parameter is not model.get_input_embeddings().weight
    ]
    left = [name.removesuffix(".weight") for name in others]
    without = f"; none for {_names(left, within=True)}" if left else ""
    return f"adapters for {len(chosen)} linear layers ({_names(chosen)}){without}"


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _no_layer(model: nn.Module, target: str) -> str:
    """Say what a name is that is not that of a linear layer."""
    for name, part in model.named_modules():
        if _is_called(name, target):
            if _is_read_past(model, name):
                return "is a layer whose weight is read past it, and so past an adapter"
            kind = type(part).__name__
            return f"is a layer of kind {kind}, and only adapters of linear layers can be merged at export"
    for name, parameter in model.named_parameters():
        if _is_called(name, target):
            shape = list(parameter.shape)
            return f"is a parameter of shape {shape}, and only adapters of linear layers can be merged at export"
    return "is the name of no layer"


def _names(names: Sequence[str], *, within: bool = False) -> str:
    """List the last parts of layers' names, each once; ``within``: with the part before, which tells them apart."""
    short = {
        ".".join([part for part in name.split(".") if not part.isdigit()][-2 if within else -1 :]) for name in names
    }
    return ", ".join(sorted(short))


@contextmanager
def _names_taken_as_they_are(config: Any) -> Iterator[None]:
    """Keep PEFT from adapting something else than the layers that it is given.

    PEFT 0.21 knows some architectures by what they were in transformers 4: it takes a ``gate_proj`` of the dense or
    shared part of a mixture of experts for that of its experts, and adapts these as one 3-D parameter.
    """
    kind = config.model_type
    config.model_type = f"{kind} of transformers 5"
    try:
        yield
    finally:
        config.model_type = kind


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
