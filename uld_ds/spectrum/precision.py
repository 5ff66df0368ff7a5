"""The precision at which the codec stores spectra: its six numbers, their defaults and their bounds.

Nothing here needs PyTorch, and importing this module imports none.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CODE = 0xFFFF
# Codes reach this many nats (times the step) below ``even_mass``.
_NATS_BELOW = 32

BOUNDS: dict[str, tuple[float, float]] = {
    "num_exact": (1, 4096),
    "rank_ratio": (1.001, 4),
    "step": (1e-3, 1),
    "even_mass": (1e-4, 1),
    "dropped_mass": (0, 0.1),
    "mantissa_bits": (0, 10),
}
"""Least and largest value of each field of ``Precision``."""


@dataclass(frozen=True)
class Precision:
    """The precision of stored spectra; every field buys accuracy with size.

    Raises:
        ValueError: a field is out of its bounds, or ``step`` and ``even_mass`` together need codes of over 16 bits.
    """

    num_exact: int = 64
    """Largest ranks that are coded one by one."""
    rank_ratio: float = 1.12
    """End of a block of ranks over its beginning, for the ranks after the ``num_exact`` largest."""
    step: float = 1 / 64
    """Resolution in nats of the mass of a block that holds little."""
    even_mass: float = 1 / 900
    """Mass above which a block is resolved to ``step * even_mass`` of probability."""
    dropped_mass: float = 1e-5
    """Mass at the far end of the tail that may be left out."""
    mantissa_bits: int = 5
    """Binary logarithm of a decoded spectrum's levels per octave, which cost memory, not bytes."""

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} must lie in {least}..{most}, got {value}")
        if code_of_one(self.step, self.even_mass) > MAX_CODE:
            raise ValueError(f"step {self.step} times even_mass {self.even_mass} is too fine for 16 bits")


def code_of_zero(step: float) -> int:
    """Compute the code that mass 0 would have on the line through the even part of the code."""
    return round(_NATS_BELOW / step)


def code_of_one(step: float, even_mass: float) -> int:
    """Compute the code of mass 1, the largest code there is."""
    return round(1 / (step * even_mass)) + code_of_zero(step)
