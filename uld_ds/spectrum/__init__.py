"""Spectra: next-token distributions without token identities, their histogram, their codec, and the top-k beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uld_ds.spectrum.precision import Precision

if TYPE_CHECKING:
    from uld_ds.spectrum.spectrum import Spectrum

__all__ = ["Precision", "Spectrum"]


def __getattr__(name: str) -> Any:
    # A spectrum needs PyTorch, which takes seconds to import; how exactly one is stored, which a recipe says, does not.
    if name == "Spectrum":
        from uld_ds.spectrum.spectrum import Spectrum

        return Spectrum
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
