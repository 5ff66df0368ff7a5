"""The verdict on a run, in one sentence."""

from __future__ import annotations

from uld_ds.reporting.run_data import RunReport

# Changes of held-out bits per byte below this are noise of any held-out set that a person would have.
_NOTHING = 0.002


def verdict(report: RunReport) -> str:
    """Say in one sentence, by numbers, whether the student learned; say so where they do not tell."""
    bits = report.bits
    before, after, teacher = (bits[who] for who in ("before", "after", "teacher"))
    steps = f"{report.status.step or 0:,} steps"
    if not report.is_finished:
        steps = f"{report.status.step or 0:,} of {report.status.total_steps or 0:,} steps"
    if before is None or after is None:
        return _without_held_out(report, steps)
    change = (after - before) / before
    if abs(change) < _NOTHING:
        said = f"The student learned nothing that held-out answers show: {after:.4f} bits per byte after {steps}"
        return f"{said}, {before:.4f} before."
    if change > 0:
        said = f"The student got worse: {after:.4f} bits per byte of held-out answers after {steps}"
        return f"{said}, {before:.4f} before ({change:+.1%})."
    said = f"After {steps} the student needs {after:.4f} bits per byte of held-out answers instead of {before:.4f}"
    return f"{said} ({change:+.1%}){_distance(before, after, teacher)}."


def _distance(before: float, after: float, teacher: float | None) -> str:
    if teacher is None or before <= teacher:
        return ""
    if after <= teacher:
        return f", fewer than its teacher ({teacher:.4f})"
    share = (before - after) / (before - teacher)
    return f": {share:.0%} of the way to its teacher ({teacher:.4f})"


def _without_held_out(report: RunReport, steps: str) -> str:
    if not report.steps:
        return "Nothing can be said yet: no step is done."
    first, last = report.steps[0]["train/loss"], report.steps[-1]["train/loss"]
    return (
        f"The training loss went from {first:.4f} to {last:.4f} in {steps}; without held-out examples (data.eval) "
        "nobody knows what the student learned beyond its training answers."
    )
