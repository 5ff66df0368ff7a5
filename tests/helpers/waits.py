"""Finds what would make the host wait for an accelerator, without one."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_READ = {
    _ATEN.nonzero.default,
    _ATEN._local_scalar_dense.default,
    _ATEN.masked_select.default,
    _ATEN._unique2.default,
    _ATEN.bincount.default,
}


class NoWaits(TorchDispatchMode):
    """Refuses operations whose result has a shape, or is a number, that values of a tensor decide."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation that needs no value.

        Raises:
            AssertionError: it needs one.
        """
        kwargs = kwargs or {}
        waits = func in _READ
        if func is _ATEN.repeat_interleave.Tensor:
            waits = kwargs.get("output_size") is None
        if func in (_ATEN.index.Tensor, _ATEN.index_put_.default):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not waits, f"{func} waits for the device"
        return func(*args, **kwargs)
