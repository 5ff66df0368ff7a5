"""A comparison of runs as one HTML page: no scripts, nothing loaded, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from uld_ds.reporting.alignment_html import COLOURS
from uld_ds.reporting.charts import Axis, Series, line_chart
from uld_ds.reporting.comparison import BITS, EXPLANATION, ComparedRun, cautions, rows_of, score_names
from uld_ds.reporting.interval_chart import Interval, interval_chart
from uld_ds.reporting.page_style import STYLE

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
.compared {{ overflow-x: auto; }}
.compared table {{ width: auto; }}
.compared td {{ font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
@media (max-width: 34rem) {{
  .compared th {{ white-space: normal; }}
  .compared td {{ overflow-wrap: anywhere; }}
}}
</style>
</head>
<body>
<header><h1>{title}</h1>
{cautions}</header>
<main>
<div class="compared">{table}</div>
<p class="context">{explanation}</p>
<h2>Pictures</h2>
<div class="grid">{charts}</div>
</main>
</body>
</html>
"""


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The page, as a string to be written in UTF-8."""
    return _PAGE.format(
        title=escape(" against ".join(run.name for run in runs)),
        style=f"{COLOURS}\n{STYLE}",
        cautions="".join(f'<p class="warning">{escape(text.capitalize())}.</p>\n' for text in cautions(runs)),
        table=_table(runs),
        explanation=escape(EXPLANATION),
        charts="\n".join(chart for chart in (_learning(runs), *_scores(runs)) if chart),
    )


def _table(runs: Sequence[ComparedRun]) -> str:
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    body = "".join(
        f'<tr><th scope="row">{escape(name.strip("*"))}</th>'
        + "".join(f"<td>{f'<b>{escape(text)}</b>' if text.endswith('*') else escape(text)}</td>" for text in texts)
        + "</tr>"
        for name, texts in rows_of(runs)
    )
    return f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"


def _learning(runs: Sequence[ComparedRun]) -> str:
    counted = all(run.student_tokens is not None for run in runs)
    series = [Series(run.name, run.curve, place, markers=True) for place, run in enumerate(runs)]
    across = Axis("student tokens" if counted else "optimizer steps", low=0, whole=True)
    return line_chart("Held-out bits per byte", across, Axis(BITS), series, note="lower is better")


def _scores(runs: Sequence[ComparedRun]) -> list[str]:
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
