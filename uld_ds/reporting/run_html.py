"""A run's report as HTML: one file, no scripts, nothing loaded, light and dark, wide and narrow, on paper too."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from uld_ds.recipe.objective import LOSS_TERMS
from uld_ds.reporting.alignment_html import COLOURS, KEY, ROWS, alignment_text
from uld_ds.reporting.alignment_view import AlignmentView, visible
from uld_ds.reporting.charts import Axis, Point, Series, line_chart
from uld_ds.reporting.page_style import STYLE
from uld_ds.reporting.run_data import RunReport
from uld_ds.reporting.verdict import verdict
from uld_ds.runs.folder import NAMES
from uld_ds.runs.phases import MEANINGS
from uld_ds.utils.files import write_whole
from uld_ds.utils.redaction import Redactor

# The same line for the same model in every chart.
STUDENT, TEACHER, BEFORE, MORE = range(4)
_WHO = {"after": ("student, after", STUDENT), "teacher": ("teacher", TEACHER), "before": ("student, before", BEFORE)}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: distillation report</title>
<style>
{style}
</style>
</head>
<body>
<header>
<p class="names">{teacher} <span>taught</span> {student}</p>
<h1>{verdict}</h1>
{facts}{setting}</header>
<main>
{sections}</main>
</body>
</html>
"""


def report_page(folder: Path, *, result: Mapping[str, Any] | None = None) -> str:
    """The page of the run in a folder, as a string to be written in UTF-8."""
    return Redactor().text(run_page(RunReport.of(folder, result=result)))


def write_report(folder: Path, file: Path, *, result: Mapping[str, Any] | None = None) -> None:
    """Writes the page of the run in a folder."""
    write_whole(file, report_page(folder, result=result))


def run_page(report: RunReport) -> str:
    """The page, as a string to be written in UTF-8."""
    sections = [
        _section("Learning", _learning(report)),
        _section("How sure they are", _spectra(report)),
        _section("Answers", _answers(report)),
        _section("Where the tokenizers agree", _alignments(report)),
        _section("Time", _time(report)),
        _section("Where it comes from", _lineage(report)),
        _section("Do it again", _again(report)),
    ]
    style = f"{COLOURS}\n{STYLE}\n{ROWS}"
    return _PAGE.format(
        name=escape(report.status.name),
        style=style,
        teacher=escape(_short(report.teacher)),
        student=escape(_short(report.student)),
        verdict=escape(verdict(report)),
        facts=_state(report) + _figures(report),
        setting=_setting(report),
        sections="".join(sections),
    )


def _short(place: str) -> str:
    """A model's name; of a folder somewhere on a machine, its end."""
    return "/".join(Path(place).parts[-2:]) if place.startswith(("/", "~")) else place


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>\n" if content else ""


def _state(report: RunReport) -> str:
    if report.is_finished:
        return ""
    reason = f": {report.status.reason}" if report.status.reason else ""
    return f'<p class="warning">This run is not finished: {escape(report.status.state + reason)}.</p>\n'


def _figures(report: RunReport) -> str:
    bits, result = report.bits, report.result or {}
    rate = result.get("alignment_rate")
    known = {
        "held-out bits per byte before": _number(bits["before"]),
        "after": _number(bits["after"]),
        "teacher": _number(bits["teacher"]),
        "tokens per second": _number(report.status.tokens_per_second, ",.0f"),
        "of the student's tokens begin a segment": None if rate is None else f"{rate:.0%}",
        "optimizer steps": _number(report.status.step, ",d"),
        "restarts": str(report.status.restarts),
    }
    items = (f"<li><b>{value}</b> {escape(name)}</li>" for name, value in known.items() if value is not None)
    return f'<ul class="figures">{"".join(items)}</ul>\n'


def _setting(report: RunReport) -> str:
    """What was learnt from, by which loss, on how many workers: the recipe in one line."""
    recipe = report.recipe
    data = recipe.get("data", {}).get("train", {})
    learnt = data.get("path") or data.get("function") or data.get("dataset") or ""
    files = learnt if isinstance(learnt, list) else [learnt]
    objective = recipe.get("objective", {})
    terms = [f"{_shown(objective[key])} × {term.label}" for key, term in LOSS_TERMS.items() if objective.get(key)]
    workers = report.status.workers
    said = {
        "Data": ", ".join(_short(str(file)) for file in files),
        "Loss": " + ".join(terms),
        "Workers": workers and str(workers),
    }
    items = (f"<span><b>{name}</b> {escape(value)}</span>" for name, value in said.items() if value)
    return f'<p class="setting">{" ".join(items)}</p>\n'


def _number(value: float | None, form: str = ".4f") -> str | None:
    return None if value is None else format(value, form)


def _learning(report: RunReport) -> str:
    step = Axis("optimizer step", whole=True)
    held_out = [(event["step"], event["bits_per_byte"]) for event in report.evaluations if event["who"] != "teacher"]
    steps = [event["step"] for event in report.steps]
    teacher = report.bits["teacher"]
    level = [(steps[0], teacher), (steps[-1], teacher)] if steps and teacher is not None else []
    charts = [
        *(
            # One without a weight may not have been measured: a chart without points is none.
            line_chart(
                term.chart_title,
                step,
                Axis(term.unit),
                [Series("training", _points(report, f"train/{key}"), STUDENT, markers=False)],
            )
            for key, term in LOSS_TERMS.items()
        ),
        line_chart(
            "Bits per byte of answers",
            step,
            Axis("bits per byte, lower is better"),
            [
                Series("held out", sorted(dict(held_out).items()), STUDENT, markers=True),
                Series("training batches", _points(report, "train/bits_per_byte"), BEFORE, markers=False),
                Series("teacher, held out", level, TEACHER, markers=False),
            ],
        ),
    ]
    return _grid(charts)


def _points(report: RunReport, name: str) -> list[Point]:
    return [(event["step"], event[name]) for event in report.steps if name in event]


def _grid(charts: Sequence[str]) -> str:
    drawn = [chart for chart in charts if chart]
    return f'<div class="grid">{"".join(drawn)}</div>' if drawn else ""


def _spectra(report: RunReport) -> str:
    """One chart per place, and one of calibration."""
    cards = [_spectrum(report, number, place) for number, place in enumerate(report.places)]
    calibration = _calibration(report)
    if not any(cards) and not calibration:
        return ""
    return (
        "<p>A spectrum is a next-token distribution without its tokens: probabilities in descending order. Steep is "
        "sure, flat is unsure. ULD moves the student's towards the teacher's. Each chart is of the place before the "
        "underlined token of a held-out answer.</p>" + _grid([*cards, calibration])
    )


def _spectrum(report: RunReport, number: int, place: dict[str, Any]) -> str:
    found = {who: s["spectra"][number] for who, s in report.snapshots.items() if number < len(s.get("spectra") or ())}
    series = [Series(name, found[who]["points"], style, False) for who, (name, style) in _WHO.items() if who in found]
    chart = line_chart("", Axis("rank", "log"), Axis("probability", "log", high=1.0), series)
    if not chart:
        return ""
    rows = "".join(
        f"<tr><th>{escape(_WHO[who][0])}</th><td>{found[who]['right']:.2%}</td><td>{_likeliest(found[who])}</td></tr>"
        for who in _WHO
        if who in found
    )
    text = f"<q>…{escape(_with_line_ends(place['before']))}<mark>{escape(_with_line_ends(place['text']))}</mark></q>"
    table = (
        f"<table class='likeliest'><thead><tr><td></td><th>underlined</th><th>likeliest</th></tr></thead>{rows}</table>"
    )
    return f'<div class="card"><p class="context">{text}</p>{chart}{table}</div>'


def _with_line_ends(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ↵ ", text)


def _likeliest(found: dict[str, Any]) -> str:
    return " ".join(
        f'<span class="token"><code>{escape(visible(token.encode()))}</code> {_percent(p)}</span>'
        for token, p in found["likeliest"]
    )


def _percent(share: float) -> str:
    """Of a student that knows nothing yet, too: its likeliest tokens have a few hundredths of a percent."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def _calibration(report: RunReport) -> str:
    series, errors = [], []
    for who, (name, style) in _WHO.items():
        found = report.snapshots.get(who, {}).get("calibration")
        if found:
            points = [(item["confidence"], item["accuracy"]) for item in found["bins"]]
            series.append(Series(f"{name}: off by {found['error']:.1%}", points, style, True))
            errors.append(found)
    tokens = f"{max(item['tokens'] for item in errors):,} answer tokens" if errors else ""
    chart = line_chart(
        "Calibration on held-out answers",
        Axis("confidence in the likeliest token", low=0.0, high=1.0),
        Axis("how often it is the token", low=0.0, high=1.0),
        series,
        note=f"{tokens}; on the diagonal a model is as often right as it is sure",
        diagonal=True,
    )
    return f'<div class="card">{chart}</div>' if chart else ""


def _answers(report: RunReport) -> str:
    cards = []
    for item in report.answers:
        said = {
            "asked": item["prompt"],
            "student, before": item.get("before"),
            "student, after": item.get("after"),
            "teacher": item.get("teacher"),
            "given answer": item.get("given"),
        }
        rows = "".join(f"<dt>{name}</dt><dd>{_said(text)}</dd>" for name, text in said.items() if text is not None)
        cards.append(f'<dl class="answer">{rows}</dl>')
    note = "<p>The likeliest token each time, repetition penalty 1.3.</p>"
    return note + "".join(cards) if cards else ""


def _said(text: str) -> str:
    return escape(text) if text.strip() else "<i>nothing</i>"


def _alignments(report: RunReport) -> str:
    views = [AlignmentView.from_json(record) for record in report.alignments]
    if not views:
        return ""
    teacher = escape(_short(views[0].teacher.name))
    student = escape(_short(report.student))
    names = f"<p>Upper row: the student's tokens ({student}). Lower row: the teacher's ({teacher}).</p>"
    return names + KEY + "".join(map(alignment_text, views))


def _time(report: RunReport) -> str:
    if not report.shares:
        return ""
    rows = "".join(
        f'<tr><th>{phase}</th><td class="share">{share:.1%}</td>'
        f'<td class="bar"><i style="width:{100 * share:.1f}%"></i></td><td>{escape(MEANINGS[phase])}</td></tr>'
        for phase, share in report.shares.items()
    )
    table = f'<div class="card two"><p><b>A step\'s seconds</b></p><table class="phases">{rows}</table></div>'
    chart = line_chart(
        "Throughput",
        Axis("optimizer step", whole=True),
        Axis("tokens per second", low=0.0),
        [Series("student and teacher together", _points(report, "tokens_per_second"), STUDENT, markers=False)],
    )
    return _grid([table, chart])


def _lineage(report: RunReport) -> str:
    lineage = report.lineage or {}
    result = report.result or {}
    known = {
        "teacher": report.teacher,
        "student": report.student,
        "MLflow run": result.get("run_id"),
        "registered as": _registered(result),
        **{key.replace("_", " "): value for key, value in lineage.items() if not _says_nothing(key, value)},
    }
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_shown(value))}</td></tr>"
        for name, value in known.items()
        if value is not None
    )
    return f'<table class="facts">{rows}</table>'


def _says_nothing(key: str, value: Any) -> bool:
    """The teacher is named above; a term of weight 0 had no part in it."""
    return key == "teacher" or (key.endswith("_weight") and value == 0)


def _registered(result: dict[str, Any]) -> str | None:
    return f"{result['model_name']} version {result['model_version']}" if result.get("model_name") else None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _again(report: RunReport) -> str:
    recipe = base64.b64encode(report.recipe_yaml.encode()).decode()
    name = shlex.quote(f"{report.status.name}-again")
    revision = str((report.lineage or {}).get("code_revision", ""))
    return (
        f"<pre>{''.join(_checkout(revision))}uld-ds train {NAMES.recipe} --set run.name={name}</pre>\n"
        f'<p>The recipe as it ran, with every default: <a download="{NAMES.recipe}" '
        f'href="data:text/yaml;base64,{recipe}">{NAMES.recipe}</a>.</p>\n'
        f"<details><summary>Look at it</summary><pre>{escape(report.recipe_yaml)}</pre></details>"
    )


def _checkout(revision: str) -> Iterator[str]:
    commit = revision.removesuffix("-dirty")
    if len(commit) == 40 and all(character in "0123456789abcdef" for character in commit):
        note = "  # and changes that were not committed" if revision.endswith("-dirty") else ""
        yield f"git checkout {commit}{note}\n"
    elif revision:
        yield f"# uld-ds {escape(revision)}\n"
