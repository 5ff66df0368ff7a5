"""The pairing of answers turn by turn: which tokens are learned, and which of both sides correspond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from uld_ds.alignment.segments import segment_boundaries
from uld_ds.data.encoding import EncodedPart, EncodedSide, EncodedTurn

Alignment = Literal["segments", "positional"]
Ranges = Sequence[tuple[int, int]]


_NO_RUNS = np.zeros((0, 2), np.int64)


class TurnPairing:
    """A collector of the answers of one example, on both sides.

    Args:
        alignment: ``segments`` or ``positional``.
        most: Most tokens of the student's and of the teacher's side.
        skip_ends: With ``positional``, whether what ends a turn is left out of the pairs, for each side.
    """

    def __init__(self, alignment: Alignment, most: tuple[int, int], skip_ends: tuple[bool, bool]) -> None:
        self._positional = alignment == "positional"
        self._most = most
        self._skip_ends = skip_ends
        self.sides = CollectedSide(), CollectedSide()
        self.num_bytes = 0

    def add(self, student: EncodedTurn, teacher: EncodedTurn) -> bool:
        """Add a turn, as far as it fits; return whether all of it did."""
        turns = student, teacher
        starts = [side.count for side in self.sides]
        ends = [0, 0]
        before = self.num_bytes
        marker = [(turn.lead, turn.parts[0].first) for turn in turns]
        fits = True
        for number, parts in enumerate(zip(student.parts, teacher.parts, strict=True)):
            counts = [side.count for side in self.sides]
            fits = self._add_marker(marker, learned=student.gaps[number]) and self._add_part(parts, counts)
            if not fits:
                break
            firsts = [turn.parts[number + 1].first if number + 1 < len(turn.parts) else turn.end for turn in turns]
            marker = [(part.stop, first) for part, first in zip(parts, firsts, strict=True)]
        if fits:
            counts = [side.count for side in self.sides]
            fits = self._add_marker(marker, learned=student.gaps[-1])
            ends = [side.count - count for side, count in zip(self.sides, counts, strict=True)]
        if self._positional:
            self._pair_positions(starts, ends)
        if self.num_bytes > before:
            for side, turn in zip(self.sides, turns, strict=True):
                side.last_turn = turn.lead
        return fits

    def _add_marker(self, ranges: Ranges, *, learned: bool) -> bool:
        """Add what stands between parts: an event, which is one segment where both sides have something."""
        (student_first, student_stop), (teacher_first, teacher_stop) = ranges
        if student_stop > self._most[0] or teacher_stop > self._most[1]:
            return False
        if student_first == student_stop and teacher_first == teacher_stop:
            return True
        if learned:
            paired = all(stop > first for first, stop in ranges) and not self._positional
            for side, (first, stop) in zip(self.sides, ranges, strict=True):
                side.add(first, stop - first, in_text=False, runs=np.array([[0, stop - first]]) if paired else None)
        return True

    def _add_part(self, parts: Sequence[EncodedPart], counts: Sequence[int]) -> bool:
        """Add a part, segment by segment, up to the last segment that fits on both sides.

        Where nothing fits, the marker before it is dropped, too: what was there are the first ``counts`` tokens.
        """
        if not all(part.is_whole for part in parts):
            # It begins within a token that also spells something else: there is no text of its own to compare.
            fits = self._add_unpaired(parts)
            return fits or self._drop_from(counts)
        bounds = segment_boundaries(parts[0].spans, parts[1].spans)
        kept, whole = _fitting(parts, bounds, self._most)
        for side, part, of_side, count in zip(self.sides, parts, bounds, kept, strict=True):
            inside = of_side[of_side < count]
            paired = count and not self._positional
            runs = None
            if paired:
                runs = np.empty((len(inside), 2), np.int64)
                runs[:, 0] = inside
                runs[:-1, 1] = inside[1:]
                runs[-1, 1] = count
            side.add(part.first, count, in_text=True, runs=runs)
        if not kept[0]:
            return self._drop_from(counts)
        self.num_bytes += int(parts[0].spans[kept[0] - 1, 1])
        return whole

    def _drop_from(self, counts: Sequence[int]) -> bool:
        for side, count in zip(self.sides, counts, strict=True):
            side.drop_from(count)
        return False

    def _add_unpaired(self, parts: Sequence[EncodedPart]) -> bool:
        if any(part.stop > most for part, most in zip(parts, self._most, strict=True)):
            return False
        for side, part in zip(self.sides, parts, strict=True):
            side.add(part.first, part.stop - part.first, in_text=False, runs=None)
        return True

    def _pair_positions(self, starts: Sequence[int], ends: Sequence[int]) -> None:
        """Pair the n-th token of one side with the n-th of the other; what ends a turn is a token like others.

        (Boizard et al., arXiv 2402.12030: both answers are cut to the shorter one.)
        """
        counts = [
            side.count - start - (ending if skip else 0)
            for side, start, ending, skip in zip(self.sides, starts, ends, self._skip_ends, strict=True)
        ]
        tokens = np.arange(min(counts))
        for side, start in zip(self.sides, starts, strict=True):
            side.add_runs(np.stack([tokens, tokens + 1], axis=1) + start)


class CollectedSide:
    """A collector of one side's answer tokens."""

    def __init__(self) -> None:
        self.count = 0
        """Number of tokens so far."""
        self.last_turn = 0
        """Where the last answer begins among the side's tokens."""
        self._answers: list[np.ndarray] = []
        self._in_text: list[np.ndarray] = []
        self._runs: list[np.ndarray] = []

    def add(self, first: int, number: int, *, in_text: bool, runs: np.ndarray | None) -> None:
        """Add tokens, and runs of them [s, 2] (half-open, counted from their first) that are segments."""
        self._answers.append(np.arange(first, first + number))
        self._in_text.append(np.full(number, in_text))
        if runs is not None:
            self.add_runs(runs + self.count)
        self.count += number

    def drop_from(self, count: int) -> None:
        """Drop all that was added after the first ``count`` tokens, which were added whole."""
        while self.count > count:
            self.count -= len(self._answers.pop())
            self._in_text.pop()
            self._runs.pop()

    def add_runs(self, runs: np.ndarray) -> None:
        """Add segments [s, 2], counted from the example's first answer token."""
        self._runs.append(runs)

    def columns(self, side: EncodedSide) -> dict[str, Any]:
        """Return the columns of a ``PairRow`` of this side, from the tokens of all of it."""
        answers = np.concatenate(self._answers).astype(np.int32)
        segments = np.concatenate(self._runs or [_NO_RUNS]).astype(np.int32)
        # What follows the last token that is learned would be read for nothing.
        ids = side.ids[: answers[-1] + 1]
        return {
            "ids": ids,
            "encoder_ids": side.encoder_ids,
            "length": len(ids) + len(side.encoder_ids),
            "answers": answers,
            "in_text": np.concatenate(self._in_text),
            "segments": segments[:, 0],
            "segment_stops": segments[:, 1],
            "last_turn": self.last_turn,
        }


def _fitting(
    parts: Sequence[EncodedPart], bounds: Sequence[np.ndarray], most: Sequence[int]
) -> tuple[tuple[int, int], bool]:
    """Find how many tokens of a part fit on each side, up to a boundary of both; and whether that is all of it."""
    counts = len(parts[0].spans), len(parts[1].spans)
    if all(part.stop <= limit for part, limit in zip(parts, most, strict=True)):
        return counts, True
    # A cut before segment k keeps the tokens before it on both sides; after the last segment, all of them.
    cuts = [np.append(of_side, count) for of_side, count in zip(bounds, counts, strict=True)]
    fits = np.logical_and(*(part.first + cut <= limit for part, cut, limit in zip(parts, cuts, most, strict=True)))
    last = int(np.flatnonzero(fits)[-1]) if fits.any() else 0
    return (int(cuts[0][last]), int(cuts[1][last])), False
