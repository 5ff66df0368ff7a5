"""Encoded turns that are one part of text and what ends it."""

from __future__ import annotations

import numpy as np

from uld_ds.data.encoding import EncodedPart, EncodedTurn


def text_turn(first: int, stop: int, end: int, spans: np.ndarray) -> EncodedTurn:
    """An answer of plain text: ``ids[first:stop]`` spells it with ``spans``, ``ids[stop:end]`` ends the turn."""
    size = int(spans[-1, 1]) if len(spans) else 0
    return EncodedTurn(first, (EncodedPart(0, first, stop, spans, size),), end, (True, True))
