"""The student's own answers on a terminal: facts of their rounds as rows and lines, and some of them as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from uld_ds.runs.rounds import RolloutStatus

_MOST_REASONS = 3


def rollout_rows(rollouts: RolloutStatus) -> dict[str, str]:
    """Write the facts of a run's rollouts as rows of a table, by their names."""
    rows = {}
    if rollouts.latest is not None:
        of = f" of {rollouts.total_rounds:,}" if rollouts.total_rounds is not None else ""
        rows["rounds"] = f"{rollouts.rounds:,}{of}{_pace(rollouts)}"
        rows["own answers"] = answers_text(rollouts.latest)
    if rollouts.judged is not None and rollouts.first_judged is not None:
        rows["KL(student, teacher)"] = _judged(rollouts.judged, rollouts.first_judged)
    for number, text in enumerate((rollouts.latest or {}).get("warnings", {}).values()):
        # Rows have names of their own.
        rows[f"warning{'' if not number else f' {number + 1}'}"] = text
    return rows


def round_text(event: Mapping[str, Any], judged: Mapping[str, Any] | None) -> str:
    """Sum a round up in one line, with what the teacher has made of the last one."""
    before = "" if judged is None else f"; KL(student, teacher) {_kl(judged)} in round {judged['round']}"
    return f"round {event['round']}: {answers_text(event)}{before}"


def answers_text(event: Mapping[str, Any]) -> str:
    """Sum the answers of a round up."""
    return (
        f"{event['answers']:,} answers, {event['ended']:.0%} ended, {event['tokens']:.1f} tokens on average, "
        f"{event['distinct']:.0%} distinct, {event['repeated']:.1%} repeated{_left_out(event)}"
    )


def shown_answers(rollouts: RolloutStatus | None) -> RenderableType:
    """Show some answers of the latest round, each with the nats that student and teacher need for it."""
    if rollouts is None or rollouts.shown is None:
        return Text("no own answers to show yet", style="dim")
    shown = rollouts.shown
    parts: list[RenderableType] = [Text(f"own answers of round {shown['round']}", style="bold")]
    for answer in shown["answers"]:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("asked", Text(answer["prompt"].strip()))
        table.add_row("answered", Text(answer["answer"] + ("" if answer["ended"] else " [cut off]")))
        table.add_row("nats per byte", Text(_nats(answer)))
        parts += [table, Text("")]
    return Group(*parts[:-1]) if len(parts) > 1 else parts[0]


def _pace(rollouts: RolloutStatus) -> str:
    latest = rollouts.latest or {}
    speed = latest.get("tokens_per_second")
    pause = rollouts.seconds_per_round
    said = [f"{pause:.3g} s each" if pause else "", f"{speed:,.0f} tokens/s sampled" if speed else ""]
    return "".join(f", {text}" for text in said if text)


def _judged(judged: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    before = "" if judged["round"] == first["round"] else f" ({_kl(first)} in round {first['round']})"
    facts = [
        f"{who} {judged[key]:.4f}"
        for who, key in (("teacher", "teacher_nats_per_byte"), ("student", "student_nats_per_byte"))
        if key in judged
    ]
    return f"{_kl(judged)} nats per byte in round {judged['round']}{before}; {', '.join(facts)}"


def _kl(judged: Mapping[str, Any]) -> str:
    value = judged.get("kl_per_byte")
    return "-" if value is None else f"{value:.4f}"


def _left_out(event: Mapping[str, Any]) -> str:
    reasons: Mapping[str, int] = event["left_out"]
    if not reasons:
        return ""
    some = [f"{number:,} {reason}" for reason, number in list(reasons.items())[:_MOST_REASONS]]
    more = ", ..." if len(reasons) > _MOST_REASONS else ""
    return f"; {sum(reasons.values()):,} left out: {', '.join(some)}{more}"


def _nats(answer: Mapping[str, Any]) -> str:
    count = answer["bytes"]
    if not count:
        return "-"
    return f"student {answer['student_nats'] / count:.3f}, teacher {answer['teacher_nats'] / count:.3f}"
