"""Layer pruning: a student started from some layers of a larger model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from uld_ds.errors import UserError
from uld_ds.models.architectures import auto_class, is_encoder_decoder


def with_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Make a model of some of another's layers; what is before, between and after them is the other's.

    Args:
        model: Decoder-only model on the CPU. It is taken apart.
        kept: Numbers of the layers to keep, from 0, in order.

    Raises:
        UserError: layers that it does not have, or an architecture that cannot go without some.
    """
    key, config = "student.keep_layers", model.config.get_text_config()
    name = repr(model.config.name_or_path or model.config.model_type)
    if is_encoder_decoder(config):
        raise UserError(key, f"{name} has an encoder", "choose a decoder-only student, or keep all of its layers")
    number = config.num_hidden_layers
    if kept[-1] >= number:
        raise UserError(key, f"{kept[-1]} is not among the {number} layers (from 0) of {name}", "correct it")
    stacks: list[Any] = [module for module in model.base_model.modules() if _is_stack(module, number)]
    if len(stacks) != 1:
        raise UserError(key, f"{name} has no single stack of {number} layers", "choose another student")
    (stack,) = stacks
    rest = [layer for place, layer in enumerate(stack) if place in kept]
    del stack[:]
    stack.extend(rest)
    keep_in_config(config, kept)
    return _made_anew(model, key, name)


def keep_in_config(config: Any, kept: Sequence[int]) -> None:
    """Change a configuration, in place, to that of a model with some of its layers."""
    number = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        # What a configuration says of each layer, e.g. how wide its attention looks.
        if isinstance(value, list | tuple) and len(value) == number:
            setattr(config, name, [value[place] for place in kept])
    config.num_hidden_layers = len(kept)


def _is_stack(module: nn.Module, number: int) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) == number and next(module[0].children(), None) is not None


def _made_anew(model: PreTrainedModel, key: str, name: str) -> PreTrainedModel:
    """Put a model's weights into one that its configuration makes, and check that it computes the same logits.

    It is the model that whoever loads the checkpoint will have.

    Raises:
        UserError: it computes others: the architecture treats layers by their number.
    """
    new = auto_class(model.config).from_config(model.config, dtype=model.dtype).eval()
    new.load_state_dict(model.state_dict())
    new.generation_config = model.generation_config
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        # The old layers still know what they were.
        found, expected = (lm(input_ids=ids, use_cache=False).logits for lm in (new, model.eval()))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise UserError(key, f"{name} treats layers by their number: others would do their work", "keep all layers")
    return new
