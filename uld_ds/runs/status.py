"""The status of a run, from its folder alone: nothing is asked of the run, its cluster or a server."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from uld_ds.runs.folder import RunFolder
from uld_ds.runs.phases import OTHER, PHASES
from uld_ds.runs.progress import read_events
from uld_ds.runs.rounds import RolloutStatus, rollout_status, sampling_text

State = Literal["preparing", "running", "silent", "finished", "failed", "killed"]

RECENT_STEPS = 20
"""Number of last steps over which rates and shares are taken."""
_SHORTEST_SILENCE = 120.0
_STEPS_OF_SILENCE = 10
_ENDS: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}


@dataclass(frozen=True)
class RunStatus:
    """Facts of a run; None where there is nothing to say yet."""

    name: str
    state: State
    """State of the run. ``silent``: an event is overdue; a node may be down, or a storage may hang."""
    doing: str | None
    """Round that is being sampled, or the last stage that the run was busy with, besides steps."""
    reason: str | None
    """Reason why the run failed."""
    seconds_since_last_sign: float | None
    step: int | None
    total_steps: int | None
    loss: float | None
    ce: float | None
    uld: float | None
    """ULD distance per segment, 0 to 2."""
    bits_per_byte: float | None
    """Bits per byte of the last step's training answers."""
    held_out_bits_per_byte: dict[str, float]
    """Latest held-out bits per byte of each of ``teacher``, ``before``, ``student`` and ``after``."""
    tokens_per_second: float | None
    """Tokens of student and teacher together per second, median of the recent steps."""
    seconds_per_step: float | None
    """Seconds of a whole step, median of the recent steps."""
    student_padding: float | None
    """Share of padding in what the student computes, median of the recent steps."""
    seconds_left: float | None
    """Estimated seconds of the remaining steps, and of the remaining rounds of rollouts."""
    server_wait: float | None
    """Share of the recent steps' seconds in which they waited for a teacher's server; None where none is asked."""
    phase_shares: dict[str, float]
    """Share of each phase in the recent steps' seconds; they add up to 1."""
    last_checkpoint: dict[str, Any] | None
    """Last checkpoint: ``step``, ``seconds`` that writing it took, ``seconds_ago``, ``folder``."""
    workers: int | None
    restarts: int
    """Number of times that training began again after it had begun."""
    skipped_steps: int
    rollouts: RolloutStatus | None
    """Facts of the rounds in which the student answers prompts itself; None of a run without them."""

    def to_json(self) -> dict[str, Any]:
        """Convert the status to plain data."""
        return asdict(self)


def run_status(folder: Path, *, now: float | None = None) -> RunStatus:
    """Tell the status of the run in a folder.

    Args:
        folder: the run's folder.
        now: seconds since 1970; by default the clock's.
    """
    now = time.time() if now is None else now
    events = list(read_events(RunFolder(folder).progress))
    steps = steps_of(events)
    recent = steps[-RECENT_STEPS:]
    last = recent[-1] if recent else {}
    starts = [event for event in events if event["event"] == "start"]
    stages = [event["text"] for event in events if event["event"] == "stage"]
    end = _end(events)
    silence = now - events[-1]["time"] if events else None
    pace = _median(event.get("seconds/total") for event in recent)
    state = _state(folder, end, silence, pace)
    step, total = (last or starts[-1] if starts else last).get("step"), _last(events, "total")
    running = state in ("running", "silent", "preparing")
    rollouts = rollout_status(events, total)
    return RunStatus(
        name=folder.resolve().name,
        state=state,
        doing=_doing(stages, rollouts) if running else None,
        reason=(end or {}).get("reason") or None,
        seconds_since_last_sign=silence,
        step=step,
        total_steps=total,
        loss=last.get("train/loss"),
        ce=last.get("train/ce"),
        uld=last.get("train/uld"),
        bits_per_byte=last.get("train/bits_per_byte"),
        held_out_bits_per_byte={e["who"]: e["bits_per_byte"] for e in events if e["event"] == "evaluation"},
        tokens_per_second=_median(event.get("tokens_per_second") for event in recent),
        seconds_per_step=pace,
        student_padding=_median(event.get("student_padding") for event in recent),
        seconds_left=_seconds_left(step, total, pace, rollouts) if running else None,
        server_wait=server_wait(recent),
        phase_shares=phase_shares(recent),
        last_checkpoint=_checkpoint(folder, events, now),
        workers=starts[-1].get("workers") if starts else None,
        restarts=max(0, len(starts) - 1),
        skipped_steps=len({event["step"] for event in events if event["event"] == "skipped"}),
        rollouts=rollouts,
    )


def steps_of(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select one event per step, in order; a step that was done again counts as it was the last time."""
    latest: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "start":
            # It goes on from a checkpoint: what came after that is not so yet.
            latest = {step: known for step, known in latest.items() if step <= event["step"]}
        elif event["event"] == "step":
            latest[event["step"]] = event
    return [latest[step] for step in sorted(latest)]


def phase_shares(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Compute each phase's share of some steps' seconds; ``other`` is what is in no phase. Empty for no steps."""
    whole = sum(event.get("seconds/total", 0.0) for event in steps)
    if whole <= 0:
        return {}
    known = {phase: sum(event.get(f"seconds/{phase}", 0.0) for event in steps) / whole for phase in PHASES}
    return {**known, OTHER: max(0.0, 1 - sum(known.values()))}


def server_wait(steps: Sequence[dict[str, Any]]) -> float | None:
    """Compute the share of some steps' seconds in which they waited for a teacher's server; None where none did."""
    known = [event for event in steps if "teacher_wait_seconds" in event and event.get("seconds/total", 0.0) > 0]
    whole = sum(event["seconds/total"] for event in known)
    return sum(event["teacher_wait_seconds"] for event in known) / whole if known else None


def _end(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Find the event with which the last attempt ended, or None if it has not."""
    for event in reversed(events):
        if event["event"] == "end":
            return event
        if event["event"] in ("start", "step", "stage"):
            return None
    return None


def _state(folder: Path, end: dict[str, Any] | None, silence: float | None, pace: float | None) -> State:
    if RunFolder(folder).result.is_file():
        return "finished"
    if end is not None and end["status"] != "FINISHED":
        return _ENDS[end["status"]]
    if silence is None:
        return "preparing"
    return "silent" if silence > max(_SHORTEST_SILENCE, _STEPS_OF_SILENCE * (pace or 0.0)) else "running"


def _doing(stages: Sequence[str], rollouts: RolloutStatus | None) -> str | None:
    if rollouts is not None and rollouts.sampling is not None:
        return sampling_text(rollouts.sampling)
    return stages[-1] if stages else None


def _seconds_left(
    step: int | None, total: int | None, pace: float | None, rollouts: RolloutStatus | None
) -> float | None:
    if step is None or total is None or pace is None:
        return None
    rounds = rollouts.seconds_left if rollouts is not None else None
    return (total - step) * pace + (rounds or 0.0)


def _checkpoint(folder: Path, events: Sequence[dict[str, Any]], now: float) -> dict[str, Any] | None:
    for event in reversed(events):
        if event["event"] == "checkpoint":
            # A step may have been written again, beside a folder that turned out to be damaged.
            places = sorted(RunFolder(folder).checkpoints_of(event["step"]), key=lambda place: place.stat().st_mtime)
            if places:
                ago = {"seconds_ago": now - event["time"], "folder": str(places[-1])}
                return {"step": event["step"], "seconds": event["seconds"], **ago}
    return None


def _last(events: Sequence[dict[str, Any]], key: str) -> Any:
    return next((event[key] for event in reversed(events) if key in event), None)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of a run."""
    run = RunFolder(folder)
    return any(file.is_file() for file in (run.recipe, run.progress, run.result))


def runs_in(folder: Path) -> list[str]:
    """List the names of the runs in a storage folder, the latest first.

    Other folders beside them that hold progress, too, are left out: evaluations, stores that are being built.
    """
    if not folder.is_dir():
        return []
    named = [item for item in folder.iterdir() if re.match(r"[A-Za-z0-9]", item.name)]
    found = [item for item in named if RunFolder(item).recipe.is_file()]
    return [item.name for item in sorted(found, key=lambda item: -item.stat().st_mtime)]


def result_of(folder: Path) -> dict[str, Any] | None:
    """Read the facts of a finished run; None for a run that has not finished."""
    file = RunFolder(folder).result
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
