"""What of an answer both sides show alike: the parts that are aligned byte by byte, and what stands between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from uld_ds.conversations import Part, PartKind
from uld_ds.data.placeholders import Place
from uld_ds.data.rendering import Rendered, RenderedTurn


@dataclass(frozen=True)
class _Pair:
    """One run of text that both sides show: where, and which parts it is made of."""

    student: Place
    teacher: Place
    last: int
    """Number of its last part; several parts of a tool call are one run where both sides write alike between them."""


def same_answers(
    student: Rendered, teacher: Rendered, learn: Collection[PartKind] = ("reasoning", "text", "tool_calls")
) -> tuple[Rendered, Rendered, frozenset[str]]:
    """Narrow both sides to the parts of answers that both show and that are learned.

    Where one side trims white space around a part, neither keeps it. A part that one side does not show carries no
    loss on the other, and neither do the markers beside it. A part that the two write in different ways (a tool call's
    text with and without JSON's escapes), or in another order, is a marker.

    Args:
        student: Conversation as the student's side reads it.
        teacher: The same conversation as the teacher's side reads it.
        learn: Kinds of parts that are learned.

    Returns:
        Both sides with equally many turns, of equally many parts; and notes, as keys of ``uld_ds.data.notes.NOTES``.

    Raises:
        ValueError: they show no part alike.
    """
    if _are_alike(student, teacher, learn):
        return student, teacher, student.notes_of("student") | teacher.notes_of("teacher")
    turns: list[tuple[RenderedTurn, RenderedTurn]] = []
    shown = [_places(side) for side in (student, teacher)]
    wanted = {number for number, part in enumerate(student.parts) if part.kind in learn}
    for turn in student.turns:
        other = next((t for t in teacher.turns if _turn_of(t, student.parts) == _turn_of(turn, student.parts)), None)
        pairs = [] if other is None else _pairs(student, turn, teacher, other, wanted)
        if other is None or not pairs:
            continue
        own = [n for n, part in enumerate(student.parts) if part.turn == _turn_of(turn, student.parts)]
        silent = {n for n in own if n not in wanted or not all(n in places for places in shown)}
        silent -= _of_shown_calls(student.parts, silent & wanted, shown)
        gaps = _gaps(pairs, own, silent, shown)
        turns.append(
            (
                _with_parts(turn, [pair.student for pair in pairs], gaps),
                _with_parts(other, [pair.teacher for pair in pairs], gaps),
            )
        )
    if not wanted:
        raise ValueError(f"the answer has none of what data.learn names ({', '.join(learn)})")
    if not turns:
        raise ValueError("the two sides show no part of the answer alike")
    notes = student.notes_of("student") | teacher.notes_of("teacher") | _dropped((student, teacher), wanted)
    return _narrowed(student, [own for own, _ in turns]), _narrowed(teacher, [other for _, other in turns]), notes


def _are_alike(student: Rendered, teacher: Rendered, learn: Collection[PartKind]) -> bool:
    """Tell whether both sides show all parts alike and all are learned: of most examples there is no more to know."""
    numbers = list(range(len(student.parts)))
    return (
        all(part.call is None and part.kind in learn for part in student.parts)
        and all([place.part for turn in side.turns for place in turn.parts] == numbers for side in (student, teacher))
        and student.shown() == teacher.shown()
    )


def _with_parts(turn: RenderedTurn, parts: Sequence[Place], gaps: tuple[bool, ...]) -> RenderedTurn:
    # White space that is trimmed off the beginning of an answer is no marker.
    lead = parts[0].start if turn.lead == turn.start and parts[0].part == turn.parts[0].part else turn.lead
    return RenderedTurn(lead, tuple(parts), turn.end, gaps)


def _places(side: Rendered) -> dict[int, Place]:
    return {place.part: place for turn in side.turns for place in turn.parts}


def _turn_of(turn: RenderedTurn, parts: Sequence[Part]) -> int:
    return parts[turn.parts[0].part].turn


def _pairs(
    student: Rendered, own: RenderedTurn, teacher: Rendered, other: RenderedTurn, wanted: Collection[int]
) -> list[_Pair]:
    theirs = {place.part: (order, place) for order, place in enumerate(other.parts)}
    common = [place for place in own.parts if place.part in theirs and place.part in wanted]
    pairs = []
    for place in _in_order(common, [theirs[place.part][0] for place in common]):
        pair = _alike(student.text, place, teacher.text, theirs[place.part][1])
        if pair is not None:
            pairs.append(pair)
    return _joined(student, teacher, pairs)


def _in_order(places: Sequence[Place], orders: Sequence[int]) -> list[Place]:
    """Return the most places that stand in the same order on the other side, whose order is given."""
    if all(first < second for first, second in pairwise(orders)):
        return list(places)
    ends: list[int] = []  # the smallest end of an increasing run of each length, and where it is
    at: list[int] = []
    before: list[int] = []
    for index, order in enumerate(orders):
        length = bisect_left(ends, order)
        ends[length : length + 1] = [order]
        at[length : length + 1] = [index]
        before.append(at[length - 1] if length else -1)
    chosen = []
    index = at[-1]
    while index >= 0:
        chosen.append(places[index])
        index = before[index]
    return chosen[::-1]


def _alike(student: str, own: Place, teacher: str, other: Place) -> _Pair | None:
    texts = student[own.start : own.stop], teacher[other.start : other.stop]
    if texts[0] == texts[1]:
        return _Pair(own, other, own.part)
    if texts[0].strip() != texts[1].strip() or not texts[0].strip():
        return None
    return _Pair(_stripped(own, texts[0]), _stripped(other, texts[1]), own.part)


def _stripped(place: Place, text: str) -> Place:
    start = place.start + len(text) - len(text.lstrip())
    return replace(place, start=start, stop=start + len(text.strip()))


def _joined(student: Rendered, teacher: Rendered, pairs: Sequence[_Pair]) -> list[_Pair]:
    """Join the parts of a tool call between which both sides write the same."""
    joined: list[_Pair] = []
    for pair in pairs:
        before = joined[-1] if joined else None
        if before is not None and _same_call(student.parts[before.last], student.parts[pair.student.part]):
            between = (
                student.text[before.student.stop : pair.student.start],
                teacher.text[before.teacher.stop : pair.teacher.start],
            )
            if between[0] == between[1]:
                joined[-1] = _Pair(
                    replace(before.student, stop=pair.student.stop),
                    replace(before.teacher, stop=pair.teacher.stop),
                    pair.last,
                )
                continue
        joined.append(pair)
    return joined


def _same_call(one: Part, other: Part) -> bool:
    return one.call is not None and (one.turn, one.call) == (other.turn, other.call)


def _of_shown_calls(parts: Sequence[Part], silent: Collection[int], shown: Sequence[Collection[int]]) -> set[int]:
    """Return those parts of tool calls that are written into the markers of a call that both sides show."""
    calls = [{(parts[n].turn, parts[n].call) for n in places if parts[n].call is not None} for places in shown]
    both = calls[0] & calls[1]
    return {n for n in silent if parts[n].call is not None and (parts[n].turn, parts[n].call) in both}


def _gaps(
    pairs: Sequence[_Pair], own: Sequence[int], silent: Collection[int], shown: Sequence[Mapping[int, Place]]
) -> tuple[bool, ...]:
    """Tell for the markers before each run, and after the last one, whether they carry loss.

    Those do not among which a part stands that carries none, wherever a side shows it; of one that neither side shows,
    those where it would stand.
    """
    edges = [own[0] - 1, *(pair.last for pair in pairs)]
    firsts = [*(pair.student.part for pair in pairs), own[-1] + 1]
    unseen = {n for n in silent if not any(n in places for places in shown)}
    quiet = {
        number
        for number, (edge, first) in enumerate(zip(edges, firsts, strict=True))
        if any(min(edge, first) < n < max(edge, first) for n in unseen)
    }
    runs = [pair.student.start for pair in pairs], [pair.teacher.start for pair in pairs]
    for places, starts in zip(shown, runs, strict=True):
        quiet |= {bisect_left(starts, places[n].start) for n in silent if n in places}
    return tuple(number not in quiet for number in range(len(edges)))


def _dropped(sides: Sequence[Rendered], wanted: Collection[int]) -> frozenset[str]:
    notes = set()
    for name, side in zip(("student", "teacher"), sides, strict=True):
        parts, places = side.parts, _places(side)
        cut = _turn_of(side.turns[-1], parts) if side.is_cut else None
        calls = {(parts[n].turn, parts[n].call) for n in places}
        for n in wanted:
            if cut is not None and parts[n].turn >= cut:
                continue
            there = n in places if parts[n].call is None else (parts[n].turn, parts[n].call) in calls
            if not there:
                notes.add(f"{name}_drops_{parts[n].kind}")
    return frozenset(notes)


def _narrowed(side: Rendered, turns: Sequence[RenderedTurn]) -> Rendered:
    return replace(side, text=side.text[: turns[-1].end], turns=tuple(turns))
