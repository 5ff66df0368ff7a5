"""Models that are partitioned under ZeRO-3 while they are loaded, as whole as those that are loaded whole.

transformers 5.23 and DeepSpeed 0.19 overlook some things there. An output head is compared with the embeddings by the
pieces that are seen of both, which are empty and so always equal. Modules whose weights were loaded are initialized, by
shapes that are not there (Pegasus). Buffers lose the type that they are declared with (RecurrentGemma). And the loading
info is silent about weights that no part of the model has, or of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import deepspeed
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from uld_ds.models.pretrained import Pretrained


@contextmanager
def partitioned(config: dict[str, Any], whole: nn.Module) -> Iterator[None]:
    """Let transformers partition the parameters of the models that its body loads, as they are created.

    Nothing of that is left afterwards, also where the body fails and its error is kept.

    Args:
        config: DeepSpeed configuration of stage 3.
        whole: the model as it is without partitioning, of ``outlined``.
    """
    # transformers asks whether such an object lives; it keeps no reference of its own.
    alive = HfDeepSpeedConfig(config)
    models: Any = PreTrainedModel
    tie, initialize = models.tie_weights, models.initialize_weights
    models.tie_weights = _comparing_whole_ones(tie)
    models.initialize_weights = _of_what_is_missing(initialize, whole)
    try:
        yield
    finally:
        models.tie_weights, models.initialize_weights = tie, initialize
        del alive


def _comparing_whole_ones(tie: Callable[..., None]) -> Callable[..., None]:
    """Wrap transformers' ``tie_weights`` so that it sees whole the weights that it compares. Collective."""

    @wraps(tie)
    def tie_weights(model: Any, missing_keys: set[str] | None = None, **options: Any) -> None:
        # Without missing keys it ties whatever the configuration names; with them, what the files hold twice alike.
        known = getattr(model, "all_tied_weights_keys", None) or {}
        both = [] if missing_keys is None else [pair for pair in known.items() if missing_keys.isdisjoint(pair)]
        owners = [model.get_submodule(name.rpartition(".")[0]) for pair in both for name in pair]
        with deepspeed.zero.GatheredParameters(_own_parameters(owners)):
            tie(model, missing_keys=missing_keys, **options)

    return tie_weights


def _own_parameters(modules: list[nn.Module]) -> list[nn.Parameter]:
    # All of a module: transformers lengthens the bias of a tied head to the rows that it sees of the weight.
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


def _of_what_is_missing(initialize: Callable[..., None], whole: nn.Module) -> Callable[..., None]:
    """Wrap transformers' ``initialize_weights``: modules of which all was loaded are passed by.

    The others, which compute their buffers then, have them in the types that they have in ``whole``.
    """
    types = {name: buffer.dtype for name, buffer in whole.named_buffers()}

    @wraps(initialize)
    def initialize_weights(model: Any) -> None:
        for name, buffer in model.named_buffers():
            buffer.data = buffer.data.to(types.get(name, buffer.dtype))
        for module in model.modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if own and all(getattr(tensor, "_is_hf_initialized", False) for tensor in own):
                module._is_hf_initialized = True
        initialize(model)

    return initialize_weights


def outlined(pretrained: Pretrained, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model without its weights: none is read (transformers maps them into memory).

    Args:
        pretrained: the model.
        options: more options for transformers' ``from_pretrained``.

    Returns:
        The model, all on the meta device, and the ``output_loading_info`` that it would have whole.
    """
    found: tuple[PreTrainedModel, dict[str, Any]]
    found = pretrained.load(device_map="meta", output_loading_info=True, **options)
    return found
