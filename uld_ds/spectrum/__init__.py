"""Spectra: next-token distributions without token identities, their histogram, their codec, and the top-k beside."""

from uld_ds.spectrum.codec import Precision
from uld_ds.spectrum.spectrum import Spectrum

__all__ = ["Precision", "Spectrum"]
