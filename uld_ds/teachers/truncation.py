"""What the ULD distance is worth where a teacher tells of its likeliest tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

from uld_ds.spectrum.histogram_distance import compare
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens

LARGEST_SHARE = 0.05
"""Share of the distance that its bound may be before anybody is told."""


def share_of_bound(spectrum: Spectrum) -> float:
    """Estimate what share of the ULD distance its bound is, before there is a student: 0 where nothing is unknown.

    The bound is that of the rows themselves, padding left out; for the distance stands the one between these
    distributions and others of the same text, half of the rows away.
    """
    if spectrum.unknown_mass is None or spectrum.error is None:
        return 0.0
    rows = spectrum[(spectrum.head[:, 0] > 0).nonzero()[:, 0]]
    if len(rows) < 2 or rows.error is None:
        return 0.0
    half = len(rows) // 2
    of_tails = compare(rows.tail, rows[[*range(half, len(rows)), *range(half)]].tail, rows.grid, want_bound=False)
    distance = (rows.head - rows.head.roll(-half, 0)).abs().sum(1) + of_tails.distance
    return float(rows.error.sum() / distance.sum().clamp_min(1e-12))


def uncertain_uld(
    answers: Sequence[TeacherTokens], *, weight: float, top: int, key: str = "teacher.server.top"
) -> str | None:
    """Say in one line that too little is known for the ULD distance, if that is so; None if it is not.

    Args:
        answers: A few answers of the teacher; some hundred tokens say enough.
        weight: Weight of the distance in the objective; at 0 nothing is said.
        top: Number of the likeliest tokens that the teacher tells.
        key: Recipe key that sets it.
    """
    if weight == 0 or not answers:
        return None
    spectrum = Spectrum.cat([tokens.spectrum for tokens in answers])
    share = share_of_bound(spectrum)
    if share <= LARGEST_SHARE or spectrum.unknown_mass is None:
        return None
    mass = float(spectrum.unknown_mass.mean())
    return (
        f"objective.uld is {weight:g} and {key} is {top}: the {mass:.1%} of probability beyond those tokens leave the "
        f"ULD distance certain only to within about {share:.0%} (more than {LARGEST_SHARE:.0%}); raise {key}, or set "
        "objective.uld to 0: the other terms need no more"
    )
