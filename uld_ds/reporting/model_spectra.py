"""Spectra and calibration of student and teacher for a run's page: how sure they are in held-out answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from uld_ds.reporting.alignment_view import visible
from uld_ds.reporting.charts import Axis, Series, line_chart
from uld_ds.reporting.run_data import RunReport

# The same line for the same model in every chart.
STUDENT, TEACHER, BEFORE = range(3)
_WHO = {"after": ("student, after", STUDENT), "teacher": ("teacher", TEACHER), "before": ("student, before", BEFORE)}


@dataclass(frozen=True)
class ShownModel:
    """A model's expectation at a place of an answer."""

    name: str
    right: str
    """Probability of the token that follows, in percent."""
    top: list[tuple[str, str]]
    """Top tokens with their probabilities in percent."""


@dataclass(frozen=True)
class ShownPlace:
    """A place of an answer: what is before it, the token that follows, the spectra there."""

    before: str
    text: str
    chart: Markup
    models: list[ShownModel]


def shown_places(report: RunReport) -> list[ShownPlace]:
    """List the places of held-out answers that have a chart of the models' spectra."""
    places = (_shown_place(report, number, place) for number, place in enumerate(report.places))
    return [place for place in places if place.chart]


def _shown_place(report: RunReport, number: int, place: dict[str, Any]) -> ShownPlace:
    spectra = {who: s["spectra"][number] for who, s in report.snapshots.items() if number < len(s.get("spectra") or ())}
    found = {who: spectra[who] for who in _WHO if who in spectra}
    series = [Series(_WHO[who][0], spectrum["points"], _WHO[who][1], markers=False) for who, spectrum in found.items()]
    chart = line_chart("", Axis("rank", "log"), Axis("probability", "log", high=1.0), series)
    models = [_shown_model(_WHO[who][0], spectrum) for who, spectrum in found.items()]
    return ShownPlace(_with_line_marks(place["before"]), _with_line_marks(place["text"]), chart, models)


def _shown_model(name: str, spectrum: dict[str, Any]) -> ShownModel:
    top = [(visible(token.encode()), _percent(share)) for token, share in spectrum["likeliest"]]
    return ShownModel(name, f"{spectrum['right']:.2%}", top)


def _with_line_marks(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ↵ ", text)


def _percent(share: float) -> str:
    """Write a probability in percent, with decimals where it is small.

    The top tokens of a student that knows nothing yet have a few hundredths of a percent.
    """
    return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


def calibration_chart(report: RunReport) -> Markup:
    """Draw how often models are right against how sure they are; empty where that was not measured."""
    found = {who: report.snapshots.get(who, {}).get("calibration") for who in _WHO}
    known = {who: calibration for who, calibration in found.items() if calibration}
    if not known:
        return Markup()
    tokens = max(item["tokens"] for item in known.values())
    return line_chart(
        "Calibration on held-out answers",
        Axis("confidence in the most probable token", low=0.0, high=1.0),
        Axis("how often it is the token", low=0.0, high=1.0),
        [_calibration_line(*_WHO[who], calibration) for who, calibration in known.items()],
        note=f"{tokens:,} answer tokens; on the diagonal a model is as often right as it is sure",
        diagonal=True,
    )


def _calibration_line(name: str, style: int, calibration: dict[str, Any]) -> Series:
    points = [(item["confidence"], item["accuracy"]) for item in calibration["bins"]]
    return Series(f"{name}: off by {calibration['error']:.1%}", points, style, markers=True)
