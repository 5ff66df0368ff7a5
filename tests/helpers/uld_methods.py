"""Both ways to compute the ULD distance."""

from __future__ import annotations

from typing import Literal

Method = Literal["exact", "linear"]
METHODS: list[Method] = ["exact", "linear"]
