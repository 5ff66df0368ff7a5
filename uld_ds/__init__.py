"""uld-ds: distil large language models into small ones across tokenizers."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from uld_ds.version import __version__

if TYPE_CHECKING:
    from uld_ds.recipe import Recipe
    from uld_ds.training.trainer import Trainer

__all__ = ["Recipe", "Trainer", "__version__"]

# PEFT imports bitsandbytes where it is installed, which on some CPUs warns of a kernel that it would fetch from a hub
# for a layout of weights that is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Imported when they are asked for: importing uld_ds itself costs nothing, a trainer costs PyTorch and DeepSpeed.
_HOMES = {"Recipe": "uld_ds.recipe", "Trainer": "uld_ds.training.trainer"}


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
