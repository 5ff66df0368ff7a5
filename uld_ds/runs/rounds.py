"""The rounds of a run's rollouts, from its events alone: what whoever watches knows of the student's own answers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

RECENT_ROUNDS = 5
"""Number of last rounds over which seconds are taken."""
TIMES = ("seconds", "tokens_per_second", "held_up")
"""What only the attempt that has sampled a round knows of it."""
Event = dict[str, Any]


@dataclass(frozen=True)
class RolloutStatus:
    """Facts of a run's rollouts; None where there is nothing to say yet."""

    rounds: int
    """Rounds that have begun."""
    total_rounds: int | None
    latest: Event | None
    """Facts of the latest round: its number from 0 as ``round``, ``step``, ``answers``, ``usable``, ``left_out``,
    ``ended``, ``tokens``, ``bytes``, ``distinct``, ``repeated``, ``student_nats_per_byte``, ``seconds``,
    ``tokens_per_second``, ``warnings``."""
    judged: Event | None
    """What the teacher makes of the last round that was trained on as a whole: ``round``, ``step``,
    ``teacher_nats_per_byte``, ``student_nats_per_byte``, ``kl_per_byte``."""
    first_judged: Event | None
    """The same of the first such round."""
    sampling: Event | None
    """The round that is being sampled: ``round``, ``done`` and ``asked`` answers on the first worker."""
    seconds_per_round: float | None
    """Seconds that a round holds training up, median of the recent rounds."""
    seconds_left: float | None
    """Estimated seconds of the remaining rounds."""
    shown: Event | None
    """Some answers of a recent round as text: ``round``, ``step``, ``answers``."""

    def to_json(self) -> dict[str, Any]:
        """Convert the facts to plain data."""
        return asdict(self)


def rollout_status(events: Sequence[Event], total_steps: int | None) -> RolloutStatus | None:
    """Tell how the rollouts of a run are doing; None of a run without any."""
    rounds, judged, shown = rounds_of(events), judgments_of(events), shown_answers_of(events)
    sampling = _sampling(events)
    if not rounds and sampling is None:
        return None
    left = seconds_of_rounds_left(rounds, total_steps)
    return RolloutStatus(
        rounds=rounds[-1]["round"] + 1 if rounds else 0,
        total_rounds=_total_rounds(rounds, total_steps),
        latest=_facts(rounds[-1:]),
        judged=_facts(judged[-1:]),
        first_judged=_facts(judged[:1]),
        sampling=sampling,
        seconds_per_round=seconds_per_round(rounds),
        seconds_left=left,
        shown=_facts(shown[-1:]),
    )


def sampling_text(event: Event) -> str:
    """Say how far the sampling of a round is."""
    return f"sampling round {event['round']}: {event['done']:,} of {event['asked']:,} own answers"


def rounds_of(events: Iterable[Event]) -> list[Event]:
    """Select one ``round`` event per round, in order.

    A round that was begun again counts as it was the last time, and what it took as when it was sampled.
    """
    return _latest(events, "round")


def judgments_of(events: Iterable[Event]) -> list[Event]:
    """Select one ``round_judged`` event per round, in order."""
    return _latest(events, "round_judged")


def shown_answers_of(events: Iterable[Event]) -> list[Event]:
    """Select one ``rollout_answers`` event per round that has one, in order."""
    return _latest(events, "rollout_answers")


def seconds_per_round(rounds: Sequence[Event]) -> float | None:
    """Estimate how many seconds a round holds training up, as the recent ones did; None before the first."""
    known = [held_up(event) for event in rounds[-RECENT_ROUNDS:]]
    return statistics.median(known) if known else None


def held_up(event: Event) -> float:
    """Return the seconds that a round has held training up."""
    measured = event.get("held_up")
    return float(sum(event.get("seconds", {}).values()) if measured is None else measured)


def seconds_of_rounds_left(rounds: Sequence[Event], total_steps: int | None) -> float | None:
    """Estimate the seconds of the rounds that have not begun; None where that cannot be told."""
    total, each = _total_rounds(rounds, total_steps), seconds_per_round(rounds)
    return None if total is None or each is None else max(0, total - rounds[-1]["round"] - 1) * each


def _total_rounds(rounds: Sequence[Event], total_steps: int | None) -> int | None:
    return math.ceil(total_steps / rounds[-1]["every"]) if rounds and total_steps is not None else None


def _latest(events: Iterable[Event], name: str) -> list[Event]:
    latest: dict[int, Event] = {}
    took: dict[int, Event] = {}
    for event in events:
        if event["event"] == "start":
            # It goes on from a checkpoint: what came after that is not so yet.
            latest = {number: known for number, known in latest.items() if known["step"] <= event["step"]}
        elif event["event"] == name:
            # Told again by an attempt that has only read it, a round has no times.
            latest[event["round"]] = took[event["round"]] = _times(took.get(event["round"], {})) | event
    return [latest[number] for number in sorted(latest)]


def _times(event: Event) -> Event:
    return {name: event[name] for name in TIMES if name in event}


def _sampling(events: Sequence[Event]) -> Event | None:
    """Find the round that is being sampled: nothing came after the last word of it."""
    for event in reversed(events):
        if event["event"] == "sampling":
            return {key: event[key] for key in ("round", "done", "asked")}
        if event["event"] in ("start", "step", "skipped", "round", "end"):
            return None
    return None


def _facts(events: Sequence[Event]) -> Event | None:
    return {key: value for key, value in events[0].items() if key not in ("event", "time")} if events else None
