"""How exactly spectra become bytes: the codec's six numbers, their defaults and their bounds, for recipes too.

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
    """What bytes are spent on; every field buys accuracy with size.

    Raises:
        ValueError: a field is out of its bounds, or ``step`` and ``even_mass`` together need codes of over 16 bits.
    """

    num_exact: int = 64
    """Ranks coded one by one."""
    rank_ratio: float = 1.12
    """End of a block over its beginning, for the ranks after them."""
    step: float = 1 / 64
    """Resolution in nats of the mass of a block that holds little."""
    even_mass: float = 1 / 900
    """Blocks with more than this mass are resolved to ``step * even_mass`` of probability."""
    dropped_mass: float = 1e-5
    """So much of the far end of the tail may be left out."""
    mantissa_bits: int = 5
    """Decoded spectra have ``2**mantissa_bits`` levels per octave: memory, not bytes."""

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} must lie in {least}..{most}, got {value}")
        if code_of_one(self.step, self.even_mass) > MAX_CODE:
            raise ValueError(f"step {self.step} times even_mass {self.even_mass} is too fine for 16 bits")


def code_of_zero(step: float) -> int:
    """Code of the mass 0 that a line through the even part would have."""
    return round(_NATS_BELOW / step)


def code_of_one(step: float, even_mass: float) -> int:
    """Code of the mass 1, the largest there is."""
    return round(1 / (step * even_mass)) + code_of_zero(step)
