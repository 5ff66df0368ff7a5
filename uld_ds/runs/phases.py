"""The phases of an optimizer step's time: their names, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping

PHASES = ("data", "teacher", "reduce", "student", "loss", "backward", "step")
"""Names of a step's phases, in their order in it; ``reduce`` comes again at its end."""
OTHER = "other"
MEANINGS = {
    "data": "reading and batching",
    "teacher": "teacher's forward, or reading its cached outputs",
    "reduce": "sums over ranks, and waiting for them",
    "student": "student's forward",
    "loss": "distances and losses",
    "backward": "student's backward",
    "step": "optimizer",
    OTHER: "everything else",
}
ROUND_MEANINGS = {
    "weights": "giving the student's weights to what samples",
    "sampling": "the student's own answers, token by token",
    "alignment": "answers into prepared rows",
    "writing": "onto storage, before they are trained on",
    "waiting": "for the slowest worker",
    "reading": "all workers' answers from storage",
}
"""Phases of a round of rollouts, in their order."""


def with_other(phases: Mapping[str, float], total: float) -> dict[str, float]:
    """Complete the seconds of a step's phases by ``other``, what is in none of them, so that they add up to ``total``.

    Args:
        phases: seconds by name of the phase; a missing one took none.
        total: seconds of the whole step.
    """
    known = {phase: phases.get(phase, 0.0) for phase in PHASES}
    return {**known, OTHER: max(0.0, total - sum(known.values()))}
