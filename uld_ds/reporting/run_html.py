"""The report of a run as one HTML page to mail: no scripts, nothing loaded, light and dark, wide and narrow, on paper.

What it shows is gathered here; how it is shown is in ``templates/run.html.j2``.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from uld_ds.recipe.objective import LOSS_TERMS
from uld_ds.reporting.alignment_html import TokenRows
from uld_ds.reporting.alignment_view import AlignmentView
from uld_ds.reporting.charts import Axis, Point, Series, line_chart
from uld_ds.reporting.model_spectra import BEFORE, STUDENT, TEACHER, calibration_chart, shown_places
from uld_ds.reporting.own_answers import own_answers, round_phases, rounds_in_words
from uld_ds.reporting.run_data import RunReport
from uld_ds.reporting.templates import render
from uld_ds.reporting.verdict import verdict
from uld_ds.runs.phases import MEANINGS
from uld_ds.utils.files import write_whole
from uld_ds.utils.redaction import Redactor

_STEP = Axis("optimizer step", whole=True)

Rows = list[tuple[str, str]]


def report_page(folder: Path, *, result: Mapping[str, Any] | None = None) -> str:
    """Render the report page of the run in a folder, without secrets, as a string to be written in UTF-8."""
    return Redactor().text(run_page(RunReport.read(folder, result=result)))


def write_report(folder: Path, file: Path, *, result: Mapping[str, Any] | None = None) -> None:
    """Write the report page of the run in a folder to a file, whole or not at all."""
    write_whole(file, report_page(folder, result=result))


def run_page(report: RunReport) -> str:
    """Render a run's report page from its data, as a string to be written in UTF-8."""
    return render(
        "run.html.j2",
        name=report.status.name,
        verdict=verdict(report),
        unfinished=_unfinished(report),
        figures=_figures(report),
        setting=_setting(report),
        learning=_learning(report),
        own=own_answers(report),
        places=shown_places(report),
        calibration=calibration_chart(report),
        answers=_answers(report),
        phases=_phases(report),
        round_phases=round_phases(report),
        throughput=_throughput(report),
        lineage=_lineage(report),
        **_names(report),
        **_alignments(report),
        **_again(report),
    )


def _names(report: RunReport) -> dict[str, str]:
    return {"teacher": _short(report.teacher), "student": _short(report.student)}


def _short(place: str) -> str:
    """Shorten a model's name where it is a folder somewhere on a machine, to the folder's end."""
    return "/".join(Path(place).parts[-2:]) if place.startswith(("/", "~")) else place


def _unfinished(report: RunReport) -> str:
    """Tell state and reason of a run that has no result; empty for a finished one."""
    if report.is_finished:
        return ""
    return ": ".join(filter(None, (report.status.state, report.status.reason)))


def _figures(report: RunReport) -> Rows:
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
        **_divergence(report),
    }
    return [(value, name) for name, value in known.items() if value is not None]


def _divergence(report: RunReport) -> dict[str, str | None]:
    """Tell how far student and teacher are apart in the student's own answers, in the last round and in the first."""
    known = [event["kl_per_byte"] for event in report.judgments if "kl_per_byte" in event]
    if not known:
        return {}
    before = f", {known[0]:.4f} in the first round" if len(known) > 1 else ""
    return {f"nats per byte, KL(student, teacher) in own answers{before}": _number(known[-1])}


def _setting(report: RunReport) -> Rows:
    """Sum the recipe up in one line: the data, the loss, and the number of workers."""
    recipe = report.recipe
    data = recipe.get("data", {}).get("train", {})
    learned = data.get("path") or data.get("function") or data.get("dataset") or ""
    files = learned if isinstance(learned, list) else [learned]
    objective = recipe.get("objective", {})
    terms = [f"{_shown(objective[key])} × {term.label}" for key, term in LOSS_TERMS.items() if objective.get(key)]
    workers = report.status.workers
    said = {
        "Data": ", ".join(_short(str(file)) for file in files),
        "Loss": " + ".join(terms),
        "Own answers": rounds_in_words(recipe),
        "Workers": str(workers) if workers else "",
    }
    return [(name, value) for name, value in said.items() if value]


def _number(value: float | None, form: str = ".4f") -> str | None:
    return None if value is None else format(value, form)


def _learning(report: RunReport) -> list[Markup]:
    charts = [
        # One without a weight may not have been measured: a chart without points is none.
        *(_training_chart(report, term.chart_title, term.unit, key) for key, term in LOSS_TERMS.items()),
        _bits_chart(report),
    ]
    return [chart for chart in charts if chart]


def _training_chart(report: RunReport, title: str, unit: str, term: str) -> Markup:
    series = Series("training", _points(report, f"train/{term}"), STUDENT, markers=False)
    return line_chart(title, _STEP, Axis(unit), [series])


def _bits_chart(report: RunReport) -> Markup:
    held_out = {event["step"]: event["bits_per_byte"] for event in report.evaluations if event["who"] != "teacher"}
    steps = [event["step"] for event in report.steps]
    teacher = report.bits["teacher"]
    level = [(steps[0], teacher), (steps[-1], teacher)] if steps and teacher is not None else []
    series = [
        Series("held out", sorted(held_out.items()), STUDENT, markers=True),
        Series("training batches", _points(report, "train/bits_per_byte"), BEFORE, markers=False),
        Series("teacher, held out", level, TEACHER, markers=False),
    ]
    return line_chart("Bits per byte of answers", _STEP, Axis("bits per byte, lower is better"), series)


def _points(report: RunReport, name: str) -> list[Point]:
    return [(event["step"], event[name]) for event in report.steps if name in event]


def _answers(report: RunReport) -> list[Rows]:
    """List, for each prompt, the prompt itself and everybody's answer to it, after the reasoning if there is any."""
    keys = {
        "asked": "prompt",
        "student, before": "before",
        "student, after": "after",
        "teacher": "teacher",
        "given answer": "given",
    }
    rows = []
    for item in report.answers:
        said = [((f"{who}: reasoning", f"{key}_reasoning"), (who, key)) for who, key in keys.items()]
        rows.append([(who, item[key]) for pair in said for who, key in pair if item.get(key) is not None])
    return rows


def _alignments(report: RunReport) -> dict[str, Any]:
    views = [AlignmentView.from_json(record) for record in report.alignments]
    teacher = _short(views[0].teacher.name) if views else ""
    return {"alignments": [TokenRows.of(view) for view in views], "aligned_teacher": teacher}


def _phases(report: RunReport) -> list[dict[str, Any]]:
    return [
        {"name": phase, "percent": 100 * share, "meaning": MEANINGS[phase]} for phase, share in report.shares.items()
    ]


def _throughput(report: RunReport) -> Markup:
    series = Series("student and teacher together", _points(report, "tokens_per_second"), STUDENT, markers=False)
    return line_chart("Throughput", _STEP, Axis("tokens per second", low=0.0), [series])


def _lineage(report: RunReport) -> Rows:
    lineage = report.lineage or {}
    result = report.result or {}
    known = {
        "teacher": report.teacher,
        "student": report.student,
        "MLflow run": result.get("run_id"),
        "registered as": _registered(result),
        **{key.replace("_", " "): value for key, value in lineage.items() if not _says_nothing(key, value)},
    }
    return [(name, _shown(value)) for name, value in known.items() if value is not None]


def _says_nothing(key: str, value: Any) -> bool:
    """Tell whether a fact is left out: the teacher is named above, a term of weight 0 had no part in the loss."""
    return key == "teacher" or (key.endswith("_weight") and value == 0)


def _registered(result: dict[str, Any]) -> str | None:
    return f"{result['model_name']} version {result['model_version']}" if result.get("model_name") else None


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _again(report: RunReport) -> dict[str, str]:
    return {
        "checkout": _checkout(str((report.lineage or {}).get("code_revision", ""))),
        "again": shlex.quote(f"{report.status.name}-again"),
        "recipe": report.recipe_yaml,
        "recipe_base64": base64.b64encode(report.recipe_yaml.encode()).decode(),
    }


def _checkout(revision: str) -> str:
    """Write the line that brings the run's code back, or names its release; empty if the revision is not known."""
    commit = revision.removesuffix("-dirty")
    if len(commit) == 40 and all(character in "0123456789abcdef" for character in commit):
        note = "  # and changes that were not committed" if revision.endswith("-dirty") else ""
        return f"git checkout {commit}{note}"
    return f"# uld-ds {revision}" if revision else ""
