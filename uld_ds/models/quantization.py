"""Quantization of a student's frozen linear layers to 4 bits, beside the adapters that learn (QLoRA).

NF4 with doubly quantized scales, as in Dettmers et al., arXiv 2305.14314, by bitsandbytes: 4 bits a weight, 8 bits for
each block of 64, and 32 bits for 256 blocks. Embeddings, norms and the output head keep the student's precision, and so
do adapters and all that is computed.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from uld_ds.errors import UserError
from uld_ds.models.architectures import auto_class
from uld_ds.recipe import StudentSettings

_LINEAR = (nn.Linear, Conv1D)
_BLOCK = 64
BYTES_PER_WEIGHT = 0.5 + 1 / _BLOCK + 4 / (_BLOCK * 256)


def check_installed(settings: StudentSettings) -> None:
    """Check that bitsandbytes is installed where a recipe asks for 4 bits.

    Raises:
        UserError: it is not.
    """
    if settings.quantize is not None and find_spec("bitsandbytes") is None:
        fix = "pip install 'uld-ds[qlora]', on every node, or leave it out"
        raise UserError("student.lora.quantize", f"{settings.quantize!r} needs bitsandbytes, which is not there", fix)


def loading_options(
    settings: StudentSettings, of_model: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Make the options of ``from_pretrained`` by which each weight is quantized as it is read.

    Args:
        settings: Student section of a recipe, with ``quantize`` set.
        of_model: Configuration of the model.
        dtype: Type of everything that is computed.
        device: Device of this rank, where the weights are quantized and stay.

    Raises:
        UserError: as ``check_installed`` and ``check_quantizable``.
    """
    check_installed(settings)
    with torch.device("meta"):
        model = auto_class(of_model).from_config(of_model)
    check_quantizable(settings, model)
    taken = set(quantized_linears(model))
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[name for name, _ in _linears(model) if name not in taken],
    )
    return {"quantization_config": config, "device_map": {"": device}}


def quantized_linears(model: PreTrainedModel) -> list[str]:
    """List the names of the layers that are held in 4 bits.

    These are all linear ones but the output head, those that the architecture keeps in fp32, and those whose input is
    no multiple of 64 wide. A block of the latter may lie in two rows, where bitsandbytes takes another block's scale
    on a CPU (seen in 0.50.2).

    Args:
        model: Model that is not quantized; its weights need not exist.
    """
    left = HfQuantizer.get_modules_to_not_convert(model, None, list(model._keep_in_fp32_modules or ()))
    return [name for name, width in _linears(model) if width % _BLOCK == 0 and should_convert_module(name, left)]


def _linears(model: nn.Module) -> Iterable[tuple[str, int]]:
    """Yield names and input widths of the linear layers that may be quantized."""
    for name, part in model.named_modules():
        if type(part) in _LINEAR:
            weight: Any = part.weight
            yield name, weight.shape[0 if isinstance(part, Conv1D) else 1]


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer, with its weight as it is, transposed, or in 4 bits.

    A layer of a class of its own is one if it computes the same: Falcon's does, routers of experts do not.
    """
    kind: Any = type(module)
    if kind in _LINEAR:
        return True
    if isinstance(module, nn.Linear):
        # By its name: bitsandbytes need not be installed.
        is_four_bit = kind.__name__ == "Linear4bit" and kind.__module__.partition(".")[0] == "bitsandbytes"
        return is_four_bit or _computes_a_product(kind)
    return False


@cache
def _computes_a_product(kind: Callable[..., Any]) -> bool:
    hidden = torch.tensor([[0.5, -2.0, 3.0]])
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
            layer = kind(3, 2)
            found = layer(hidden)
            return torch.allclose(found, nn.functional.linear(hidden, layer.weight, layer.bias))
    except (TypeError, AttributeError, RuntimeError):  # made of something else than two widths, or returning it
        return False


def check_quantizable(settings: StudentSettings, model: PreTrainedModel) -> None:
    """Check that a model can be held in 4 bits, where a recipe asks for them.

    Raises:
        UserError: the model has no layer for them, or its weights are quantized already.
    """
    key = "student.lora.quantize"
    if settings.quantize is None:
        return
    if getattr(model.config, "quantization_config", None) is not None:
        problem = f"{settings.quantize!r} of a model whose weights are quantized already"
        raise UserError(key, problem, "start from the model that it was made of")
    if not quantized_linears(model):
        problem = f"{model.config.model_type!r} of this size has no linear layer with an input of a multiple of 64"
        raise UserError(key, problem, "leave it out")


def quantization_method(config: Any) -> str | None:
    """Read from a configuration how a model's weights are quantized, e.g. ``gptq``; None where they are not."""
    found: Any = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method or "in a way that it does not name"))


def settle(model: Any) -> None:
    """Make a loaded model compute in evaluation what it computes in training, and let go of its files."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            # What is not quantized may lie in a file that is mapped into memory, with all else that was read of it.
            parameter.data = parameter.data.clone()
    for _, layer in _layers(model):
        # On some CPUs it would, when it is evaluated, round its scales to bf16 for another layout: other weights than
        # those that are trained, and for some shapes an error.
        layer.support_avx512bf16_for_cpu = False


def is_quantized(model: nn.Module) -> bool:
    """Tell whether a model, or one that it wraps, was loaded with ``loading_options``."""
    return any(getattr(part, "is_loaded_in_4bit", False) for part in model.modules())


def _layers(model: Any) -> Iterable[tuple[str, Any]]:
    from bitsandbytes.nn import Linear4bit

    return ((name, part) for name, part in model.named_modules() if isinstance(part, Linear4bit))


def dequantized(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Dequantize those weights that are held in 4 bits, on the CPU, to the type that the model computes in.

    Args:
        model: Model whose layers are quantized, some of them inside of adapters.
        weights: Weights by the names they have without adapters; of a quantized one its packed bytes, and its scales
            beside it.

    Returns:
        All weights, the quantized ones as plain matrices without scales.
    """
    from bitsandbytes.functional import dequantize_4bit

    plain = dict(weights)
    for name, layer in _layers(model):
        key = f"{name.removesuffix('.base_layer')}.weight"
        for scale in [other for other in plain if other.startswith(f"{key}.")]:
            del plain[scale]
        matrix = dequantize_4bit(layer.weight.data, layer.weight.quant_state).cpu()
        # Some architectures keep their matrices transposed; in 4 bits, none does.
        plain[key] = matrix.T.contiguous() if is_transposed(layer) else matrix
    return plain


def is_transposed(layer: Any) -> bool:
    """Tell whether the weight of a quantized layer is transposed where it is not quantized."""
    return getattr(layer, "source_cls", None) is Conv1D


def unquantized_like(model: Any) -> PreTrainedModel:
    """Make a model of the same configuration with plain layers and no weights, to save dequantized weights as."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        plain: PreTrainedModel = auto_class(config).from_config(config, dtype=model.dtype)
    plain.generation_config = model.generation_config
    return plain


# ---- checkpoints: of what learns alone, with a digest of what it learns beside


def learning(module: nn.Module) -> set[str]:
    """Collect the names of the parameters that learn, those that a checkpoint of a quantized student holds."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def load_learning(src: dict[str, Tensor], dst: nn.Module) -> None:
    """Load the parameters that learn from a checkpoint into a module; DeepSpeed calls it with these names.

    Raises:
        ValueError: the checkpoint is of other parameters than those that learn.
    """
    if src.keys() != learning(dst):
        other = sorted(src.keys() ^ learning(dst))
        raise ValueError(f"its parameters are not those that learn here: {', '.join(other[:3])}")
    dst.load_state_dict(src, strict=False)


def base_digest(module: Any) -> str:
    """Compute the sha256 of everything frozen, of 4-bit weights their bytes and scales.

    Computed once: nothing changes it.
    """
    found: str | None = getattr(module, "frozen_digest", None)
    if found is None:
        digest = hashlib.sha256()
        own = learning(module)
        for name, tensor in sorted(module.state_dict().items()):
            if name not in own:
                digest.update(name.encode())
                digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().data)
        found = module.frozen_digest = digest.hexdigest()
    return found
