"""A comparison of several runs: what they were made of, what they used, how good the students are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from uld_ds.recipe.objective import LOSS_TERMS, ObjectiveSettings
from uld_ds.recipe.removed_keys import REMOVED_KEYS
from uld_ds.reporting.run_data import names_of_teachers
from uld_ds.runs.folder import RunFolder
from uld_ds.runs.progress import read_events
from uld_ds.runs.status import result_of, run_status, steps_of
from uld_ds.utils.redaction import Redactor

BITS = "bits per byte"
EVALUATION = "evaluation.json"
"""Name of the file with the results of ``uld-ds evaluate``, in a folder of its own."""


@dataclass(frozen=True)
class Score:
    """One figure of a student; with a 95 % interval where it was evaluated, without where its run measured it."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison; None where there is nothing to say."""

    name: str
    state: str
    teacher: str
    student: str
    objective: str
    steps: int | None
    student_tokens: int | None
    """Tokens of prompts and answers that the student was trained on, all epochs."""
    wall_seconds: float | None
    bits_before: float | None
    """Held-out bits per byte of the student before training."""
    bits_teacher: float | None
    """Held-out bits per byte of the teacher."""
    scores: dict[str, Score]
    """Scores by name: ``bits per byte`` first, lower is better; then percentages, higher is better."""
    held_out: str
    """Identity of the held-out rows that the run measured its bits per byte on."""
    scored_on: str
    """Identity of the rows that ``scores`` are about: the run's own, or those that the student was evaluated on."""
    words: str | None = None
    """How the scores of answers read text; None without such scores."""
    own_divergence: float | None = None
    """KL(student, teacher) in nats per byte of the last round of the student's own answers; None without rollouts."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Held-out bits per byte after so many student tokens (or steps, where tokens were not counted)."""

    def to_json(self) -> dict[str, Any]:
        """Convert the run to plain data."""
        return asdict(self)

    @classmethod
    def of(cls, folder: Path) -> ComparedRun:
        """Read a run's folder and the evaluation beside it, or an evaluation's folder alone."""
        if is_evaluation(folder):
            return cls._evaluated(folder)
        recipe = Redactor().tree(yaml.safe_load(RunFolder(folder).recipe.read_text(encoding="utf-8")))
        status, result = run_status(folder), result_of(folder) or {}
        events = list(read_events(RunFolder(folder).progress))
        steps = steps_of(events)
        known = status.held_out_bits_per_byte
        told = {who: value for who, value in result.get("bits_per_byte", {}).items() if value is not None}
        after = told.get("after", known.get("after", known.get("student")))
        evaluation = _evaluation(evaluation_of(folder))
        held_out = recipe["data"].get("eval")
        return cls(
            name=status.name,
            state=status.state,
            teacher=names_of_teachers(recipe, weighed=True),
            student=_student(recipe["student"]),
            objective=_objective(recipe["objective"]) + _rollouts(recipe.get("rollouts")),
            steps=result.get("steps", status.step),
            student_tokens=_tokens(steps),
            wall_seconds=result.get("wall_seconds"),
            bits_before=told.get("before", known.get("before")),
            bits_teacher=told.get("teacher", known.get("teacher")),
            scores=_scores(after, evaluation),
            held_out=_identity(held_out),
            scored_on=_identity(evaluation.get("held_out", held_out)),
            words=_words(evaluation),
            own_divergence=((status.rollouts and status.rollouts.judged) or {}).get("kl_per_byte"),
            curve=_curve(steps, events),
        )

    @classmethod
    def _evaluated(cls, folder: Path) -> ComparedRun:
        """Read an evaluation of a model that no run made: a teacher, or a student before training."""
        facts = _evaluation(folder)
        return cls(
            name=folder.resolve().name,
            state="finished",
            teacher="-",
            student=Redactor().text(str(facts["model"])),
            objective="-",
            steps=None,
            student_tokens=None,
            wall_seconds=None,
            bits_before=None,
            bits_teacher=None,
            scores=_scores(None, facts),
            held_out=_identity(facts.get("held_out")),
            scored_on=_identity(facts.get("held_out")),
            words=_words(facts),
        )


def evaluation_of(run: Path) -> Path:
    """Name the folder of the evaluation of a run's student, if there is one: it lies beside the run's."""
    place = run.resolve()
    return place.with_name(f"{place.name}-evaluation")


def is_evaluation(folder: Path) -> bool:
    """Tell whether a folder was written by ``uld-ds evaluate``."""
    return (folder / EVALUATION).is_file()


def _evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / EVALUATION).read_text(encoding="utf-8")) if is_evaluation(folder) else {}


def _identity(source: dict[str, Any] | None) -> str:
    return json.dumps(source, sort_keys=True)


def _words(evaluation: dict[str, Any]) -> str | None:
    # Evaluations that do not say it are of a time when there was one way.
    return str(evaluation.get("words", "published")) if evaluation.get("scores") else None


def _student(settings: dict[str, Any]) -> str:
    return str(settings.get("model") or f"a new {(settings.get('from_config') or {}).get('model_type', 'model')}")


def _objective(settings: dict[str, Any]) -> str:
    terms = [f"{settings[name]:g} {name}" for name in LOSS_TERMS if settings.get(name)]
    return ", ".join([" + ".join(terms), settings.get("alignment", "segments"), *_choices(settings)])


def _choices(settings: dict[str, Any]) -> Iterator[str]:
    """Yield what an objective says besides its weights; of older runs also what has been removed since."""
    fields = ObjectiveSettings.model_fields
    defaults = {name: fields[name].default for term in LOSS_TERMS.values() for name in term.details}
    defaults |= {name: fields[name].default for name in ("projection_student_ids", "skip_whitespace_rows", "combine")}
    defaults |= {key.removeprefix("objective."): removed.default for key, removed in REMOVED_KEYS.items()}
    for name, default in defaults.items():
        if (value := settings.get(name, default)) != default:
            yield name if value is True else f"{name} {value}"


def _rollouts(settings: dict[str, Any] | None) -> str:
    return f", {settings['share']:.0%} own answers every {settings['every']} steps" if settings else ""


def _tokens(steps: Sequence[dict[str, Any]]) -> int | None:
    counts = [step.get("student_tokens") for step in steps]
    return int(sum(counts)) if counts and None not in counts else None  # type: ignore[arg-type]


def _scores(after: float | None, evaluation: dict[str, Any]) -> dict[str, Score]:
    bits = evaluation.get("bits_per_byte")
    scores = {}
    if bits is not None:
        scores[BITS] = Score(bits["mean"], bits["low"], bits["high"])
    elif after is not None:
        scores[BITS] = Score(after)
    for name, value in evaluation.get("scores", {}).items():
        scores[name] = Score(value, *evaluation["intervals"][name])
    return scores


def _curve(steps: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    counted = _tokens(steps) is not None
    totals = accumulate(int(step["student_tokens"]) if counted else 1 for step in steps)
    spent = {0: 0.0, **{step["step"]: float(total) for step, total in zip(steps, totals, strict=True)}}
    points = {
        event["step"]: event["bits_per_byte"]
        for event in events
        if event["event"] == "evaluation" and event["who"] != "teacher" and event["step"] in spent
    }
    return [(spent[step], points[step]) for step in sorted(points)]


def score_names(runs: Sequence[ComparedRun]) -> list[str]:
    """List the names of the scores that any of the runs has, bits per byte first."""
    return list(dict.fromkeys([BITS, *(name for run in runs for name in run.scores)]))


def best_of(runs: Sequence[ComparedRun], name: str) -> set[int]:
    """Find the runs that are best in a score, or not told apart from the best, since their intervals overlap.

    A run without an interval is judged by its value alone.

    Returns:
        Numbers of runs, from 0; empty for fewer than two values.
    """
    known = {place: run.scores[name] for place, run in enumerate(runs) if name in run.scores}
    if len(known) < 2:
        return set()
    sign = -1.0 if name == BITS else 1.0
    best = max(known.values(), key=lambda score: sign * score.value)
    return {place for place, score in known.items() if score.value == best.value or _overlap(score, best)}


def _overlap(one: Score, other: Score) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def cautions(runs: Sequence[ComparedRun]) -> list[str]:
    """List what a reader must know before reading the runs' figures against each other."""
    said = []
    if len({run.scored_on for run in runs}) > 1:
        said.append("the held-out rows differ: the scores do not compare")
    if len({run.words for run in runs if run.words is not None}) > 1:
        said.append("answers were read in two ways (evaluation.words): scores of words do not compare")
    elsewhere = [run.name for run in runs if run.scored_on != run.held_out]
    if elsewhere:
        said.append(
            f"evaluated on other rows than the run's own: {', '.join(elsewhere)}; bits per byte before, and the "
            "teacher's, do not compare with the scores"
        )
    if len({run.teacher for run in runs if run.teacher != "-"}) > 1:
        said.append("the runs have different teachers")
    unfinished = [f"{run.name} ({run.state})" for run in runs if run.state != "finished"]
    if unfinished:
        said.append(f"not finished: {', '.join(unfinished)}")
    return said


def rows_of(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """Write the table's rows: a property's name and one text per run; ``*`` marks the best, and what may be.

    Marked are the best score and those that are not told apart from it: see ``best_of``.
    """
    rows: list[tuple[str, list[str]]] = [
        ("teacher", [run.teacher for run in runs]),
        ("student", [run.student for run in runs]),
        ("objective", [run.objective for run in runs]),
        ("steps", [_number(run.steps) for run in runs]),
        ("student tokens", [_number(run.student_tokens) for run in runs]),
        ("wall time, s", [_number(run.wall_seconds) for run in runs]),
        (f"{BITS}, before", [_decimals(run.bits_before) for run in runs]),
        (f"{BITS}, teacher", [_decimals(run.bits_teacher) for run in runs]),
    ]
    if any(run.own_divergence is not None for run in runs):
        rows.append(("KL(student, teacher) in own answers", [_decimals(run.own_divergence) for run in runs]))
    for name in score_names(runs):
        best = best_of(runs, name)
        texts = [_scored(run.scores.get(name), name) + (" *" if n in best else "") for n, run in enumerate(runs)]
        rows.append((f"**{name}**", texts))
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _scored(score: Score | None, name: str) -> str:
    if score is None:
        return "-"
    digits = 4 if name == BITS else 2
    interval = "" if score.low is None else f" [{score.low:.{digits}f}, {score.high:.{digits}f}]"
    return f"{score.value:.{digits}f}{interval}"


def markdown(runs: Sequence[ComparedRun]) -> str:
    """Write the table in Markdown, with its cautions and what the marks mean."""
    cells = [["", *(run.name for run in runs)], *([name, *texts] for name, texts in rows_of(runs))]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    lines.insert(1, "|---" * (len(runs) + 1) + "|")
    notes = [f"{text[0].upper()}{text[1:]}." for text in cautions(runs)]
    return "\n".join([*lines, "", *notes, EXPLANATION])


EXPLANATION = (
    "Bits per byte of held-out answers: lower is better; all other scores are percentages. In brackets, 95 % bootstrap "
    "intervals. * is the best, or not told apart from it."
)
