"""Pictures of a run's metrics: losses, bits per byte, own answers, and where a step's time goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from uld_ds.recipe.objective import LOSS_TERMS
from uld_ds.reporting.charts import Axis, Series, line_picture
from uld_ds.reporting.stack_picture import stack_picture
from uld_ds.runs.phases import OTHER, PHASES

History = Mapping[str, Sequence[tuple[int, float]]]

_LOSSES = {"train/loss": "loss"} | {f"train/{key}": f"{term.label} ({term.unit})" for key, term in LOSS_TERMS.items()}
_STEP = Axis("optimizer step", whole=True)


def plots(history: History) -> Iterator[tuple[str, str]]:
    """Yield each picture that there are metrics for, as the name of a file and its SVG.

    Args:
        history: steps and values, in order, by the name of the metric.
    """
    pictures = {"loss.svg": _loss, "bits_per_byte.svg": _bits, "own_answers.svg": _own, "phases.svg": _phases}
    for name, draw in pictures.items():
        if picture := draw(history):
            yield name, picture


def _loss(history: History) -> str:
    series = [Series(label, history.get(name, ()), style) for style, (name, label) in enumerate(_LOSSES.items())]
    return line_picture("Training loss", _STEP, Axis("per optimizer step"), series)


def _bits(history: History) -> str:
    trained, held_out = history.get("train/bits_per_byte", ()), history.get("eval/bits_per_byte", ())
    steps = [step for points in (trained, held_out) for step, _ in points]
    teacher = history.get("eval/teacher_bits_per_byte", ())
    level = [(step, teacher[-1][1]) for step in (min(steps), max(steps))] if steps and teacher else []
    series = [
        Series("held out", held_out, 0, markers=True),
        Series("training batches", trained, 2),
        Series("teacher, held out", level, 1, markers=False),
    ]
    return line_picture("Bits per byte of answers", _STEP, Axis("bits per byte, lower is better"), series)


def _own(history: History) -> str:
    names = {
        "student, when it sampled them": "rollouts/student_nats_per_byte",
        "teacher": "rollouts/teacher_nats_per_byte",
        "KL(student, teacher)": "rollouts/kl_per_byte",
    }
    series = [Series(label, history.get(name, ()), style) for style, (label, name) in enumerate(names.items())]
    return line_picture("The student's own answers", _STEP, Axis("nats per byte"), series)


def _phases(history: History) -> str:
    """Draw the phases' shares of each step's seconds, one above the other; empty without any."""
    known = {phase: dict(history.get(f"seconds/{phase}", ())) for phase in PHASES}
    total = dict(history.get("seconds/total", ()))
    steps = sorted(step for step, seconds in total.items() if seconds > 0)
    if not steps or not any(known.values()):
        return ""
    shares = {phase: [100 * seconds.get(step, 0.0) / total[step] for step in steps] for phase, seconds in known.items()}
    # What OTHER says, drawn last.
    shares[OTHER] = [max(0.0, 100 - sum(column)) for column in zip(*shares.values(), strict=True)]
    return stack_picture("Where a step's time goes", "% of the step's seconds, first worker", steps, shares)
