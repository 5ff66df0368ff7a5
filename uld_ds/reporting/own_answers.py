"""The student's own answers for a run's page: what they are like round by round, and some of them as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from uld_ds.recipe.objective import LOSS_TERMS
from uld_ds.reporting.charts import Axis, Point, Series, line_chart
from uld_ds.reporting.model_spectra import STUDENT, TEACHER
from uld_ds.reporting.run_data import Facts, RunReport
from uld_ds.runs.phases import ROUND_MEANINGS
from uld_ds.runs.rounds import held_up

# Round by round from top to bottom, so that a person can look at all of them.
_MOST_ROUNDS = 6
_MOST_OF_PROMPT, _MOST_OF_ANSWER = 400, 800
_STEP = Axis("optimizer step", whole=True)
_THIRD = 3


@dataclass(frozen=True)
class NatsBar:
    """What one model needs for an answer, as a number and as a bar."""

    who: str
    per_byte: str
    percent: float
    """Length of the bar, in percent of the longest on the page."""


@dataclass(frozen=True)
class AnswerCard:
    """One answer of a round."""

    prompt: str
    text: str
    ended: bool
    bars: list[NatsBar]


@dataclass(frozen=True)
class ShownRound:
    """Some answers of a round, side by side."""

    title: str
    facts: str
    answers: list[AnswerCard]


@dataclass(frozen=True)
class OwnAnswers:
    """The section of the page."""

    warnings: list[str]
    charts: list[Markup]
    rounds: list[ShownRound]
    hidden: int
    """Number of rounds whose answers were kept, but are not on the page."""


def own_answers(report: RunReport) -> OwnAnswers | None:
    """Gather what the page shows of the student's own answers; None of a run that has none."""
    if not report.rounds:
        return None
    rounds = _shown(report)
    hidden = len(report.shown_answers) - len(rounds)
    return OwnAnswers(_warnings(report.rounds), _charts(report), rounds, hidden)


def _charts(report: RunReport) -> list[Markup]:
    rounds, judged = report.rounds, report.judgments
    # At the step at which the answers were sampled: both models' nats are of the same answers.
    steps = {event["round"]: event["step"] for event in rounds}
    divergence = [(steps[e["round"]], e["kl_per_byte"]) for e in judged if "kl_per_byte" in e and e["round"] in steps]
    teacher = [
        (steps[e["round"]], e["teacher_nats_per_byte"])
        for e in judged
        if "teacher_nats_per_byte" in e and e["round"] in steps
    ]
    charts = [
        line_chart(
            "KL(student, teacher) in own answers",
            _STEP,
            Axis("nats per byte, lower is better"),
            [Series("teacher's nats less the student's", divergence, STUDENT)],
            note="by which learning from own answers is judged; comparable across tokenizers",
        ),
        line_chart(
            "Nats per byte of own answers",
            _STEP,
            Axis("nats per byte"),
            [
                Series("student, when it sampled them", _of(rounds, "student_nats_per_byte"), STUDENT),
                Series("teacher", teacher, TEACHER),
            ],
            note="a student that is ever surer of what its teacher finds unlikely is collapsing",
        ),
        line_chart(
            "Length of own answers",
            _STEP,
            Axis("mean length", low=0.0),
            [
                Series("the student's tokens", _of(rounds, "tokens"), STUDENT),
                Series("bytes of usable answers", _of(rounds, "bytes"), TEACHER),
            ],
        ),
        line_chart(
            "Shares",
            _STEP,
            Axis("%", low=0.0, high=100.0),
            [
                Series("answers that the student ended", _of(rounds, "ended", 100), STUDENT),
                Series("different answers", _of(rounds, "distinct", 100), TEACHER),
                Series("repeated 4-grams", _of(rounds, "repeated", 100), _THIRD),
            ],
        ),
    ]
    return [chart for chart in charts if chart]


def _of(events: Sequence[Facts], name: str, scale: float = 1.0) -> list[Point]:
    return [(event["step"], scale * event[name]) for event in events if name in event]


def _warnings(rounds: Sequence[Facts]) -> list[str]:
    """Say of each kind of collapse what its last round was like, how many rounds had it, and whether it lasts."""
    told: dict[str, list[str]] = {}
    for event in rounds:
        for kind, text in event.get("warnings", {}).items():
            told.setdefault(kind, []).append(text)
    lasting = rounds[-1].get("warnings", {})
    return [
        f"{texts[-1][0].upper()}{texts[-1][1:]}. So it was in {len(texts):,} of {len(rounds):,} rounds, "
        f"{'and is in the last one' if kind in lasting else 'but not in the last one'}."
        for kind, texts in told.items()
    ]


def _shown(report: RunReport) -> list[ShownRound]:
    events = [event for event in report.shown_answers if event["answers"]]
    chosen = [events[place] for place in spread(len(events), _MOST_ROUNDS)]
    nats = [value for event in chosen for answer in event["answers"] for value in _per_byte(answer).values()]
    longest = max(nats, default=0.0)
    facts = {event["round"]: event for event in report.rounds}
    return [_shown_round(event, facts.get(event["round"]), longest) for event in chosen]


def spread(count: int, most: int) -> list[int]:
    """Choose at most ``most`` numbers below ``count``, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _shown_round(event: Facts, summary: Facts | None, longest: float) -> ShownRound:
    cards = [_card(answer, longest) for answer in event["answers"]]
    if summary is None:
        return ShownRound(f"Round {event['round']}", "", cards)
    said = (
        f"step {summary['step']:,}: {summary['answers']:,} answers, {summary['ended']:.0%} ended, "
        f"{summary['tokens']:.0f} tokens on average, {summary['repeated']:.0%} repeated"
    )
    return ShownRound(f"Round {event['round']}", said, cards)


def _card(answer: Facts, longest: float) -> AnswerCard:
    bars = [
        NatsBar(who, f"{value:.3f}", 100 * max(0.0, value) / longest if longest > 0 else 0.0)
        for who, value in _per_byte(answer).items()
    ]
    prompt, text = answer["prompt"].strip(), answer["answer"]
    if len(prompt) > _MOST_OF_PROMPT:
        prompt = f"…{prompt[-_MOST_OF_PROMPT:]}"
    if len(text) > _MOST_OF_ANSWER:
        text = f"{text[:_MOST_OF_ANSWER]}…"
    return AnswerCard(prompt, text, answer["ended"], bars)


def _per_byte(answer: Facts) -> dict[str, float]:
    if not answer["bytes"]:
        return {}
    names = {"student": "student_nats", "teacher": "teacher_nats"}
    return {who: answer[name] / answer["bytes"] for who, name in names.items() if name in answer}


def round_phases(report: RunReport) -> dict[str, Any] | None:
    """Tell where the seconds of rounds go, and how much of the training they are; None of a run without rounds."""
    seconds: dict[str, float] = {}
    for event in report.rounds:
        for phase, value in event.get("seconds", {}).items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    whole = sum(seconds.values())
    if whole <= 0:
        return None
    pauses = sum(held_up(event) for event in report.rounds)
    steps = sum(event.get("seconds/total", 0.0) for event in report.steps)
    each = f"{pauses / len(report.rounds):.3g} s each"
    share = f", {pauses / (pauses + steps):.0%} of the time of steps and rounds" if pauses + steps > 0 else ""
    order = [*ROUND_MEANINGS, *(phase for phase in seconds if phase not in ROUND_MEANINGS)]
    phases = [
        {"name": phase, "percent": 100 * seconds[phase] / whole, "meaning": ROUND_MEANINGS.get(phase, "")}
        for phase in order
        if phase in seconds
    ]
    return {"phases": phases, "note": f"{len(report.rounds):,} rounds held training up for {each}{share}."}


def rounds_in_words(recipe: Facts) -> str:
    """Sum the recipe's rollouts up in a few words; empty without any."""
    settings = recipe.get("rollouts")
    if not settings:
        return ""
    own = settings.get("objective") or {k: v for k, v in recipe.get("objective", {}).items() if k != "ce"}
    terms = " + ".join(f"{own[key]:g} × {term.label}" for key, term in LOSS_TERMS.items() if own.get(key))
    said = f"{settings.get('share', 0):.0%} of each batch, new ones every {settings.get('every', 0):,} steps"
    return f"{said}; loss {terms}" if terms else said
