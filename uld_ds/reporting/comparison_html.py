"""A comparison of runs as one HTML page: no scripts, nothing loaded, light and dark."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from uld_ds.reporting.charts import Axis, Series, line_chart
from uld_ds.reporting.comparison import BITS, EXPLANATION, ComparedRun, cautions, rows_of, score_names
from uld_ds.reporting.interval_chart import Interval, interval_chart
from uld_ds.reporting.templates import render


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """Render the page that compares runs, as a string to be written in UTF-8."""
    return render(
        "comparison.html.j2",
        names=[run.name for run in runs],
        cautions=cautions(runs),
        rows=rows_of(runs),
        explanation=EXPLANATION,
        charts=[_learning(runs), *_scores(runs)],
    )


def _learning(runs: Sequence[ComparedRun]) -> Markup:
    counted = all(run.student_tokens is not None for run in runs)
    series = [Series(run.name, run.curve, place, markers=True) for place, run in enumerate(runs)]
    across = Axis("student tokens" if counted else "optimizer steps", low=0, whole=True)
    return line_chart("Held-out bits per byte", across, Axis(BITS), series, note="lower is better")


def _scores(runs: Sequence[ComparedRun]) -> list[Markup]:
    charts = []
    for name in score_names(runs):
        found = [
            Interval(run.name, score.value, score.low, score.high)
            for run in runs
            if (score := run.scores.get(name)) is not None
        ]
        note = "lower is better" if name == BITS else "percent, higher is better"
        charts.append(interval_chart(name, found, note=note))
    return charts
