"""Where a step's time goes: the names of its phases, and their sum."""

from __future__ import annotations

from collections.abc import Mapping

PHASES = ("data", "teacher", "reduce", "student", "loss", "backward", "step")
"""In the order in which a step has them; ``reduce`` comes again at its end."""
OTHER = "other"
MEANINGS = {
    "data": "reading and batching",
    "teacher": "teacher's forward, or reading what it said",
    "reduce": "sums over ranks, and waiting for them",
    "student": "student's forward",
    "loss": "distances and losses",
    "backward": "student's backward",
    "step": "optimizer",
    OTHER: "everything else",
}


def with_other(phases: Mapping[str, float], total: float) -> dict[str, float]:
    """Seconds per phase, completed by what is in none of them, so that they add up to ``total`` seconds."""
    known = {phase: phases.get(phase, 0.0) for phase in PHASES}
    return {**known, OTHER: max(0.0, total - sum(known.values()))}
