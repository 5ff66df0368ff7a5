"""The ULD distance: computed without a sort, and sorted as the reference."""

from uld_ds.uld.distance import uld_distance

__all__ = ["uld_distance"]
