"""What unknown tokens stand for: whatever the tokens around them leave of a text.

An unknown token says nothing of the text that it stands for. Between tokens that do, its place is known all the same,
if there is only one way to lay them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def only_fill(
    pieces: Sequence[bytes], unknown: Sequence[int], windows: Sequence[tuple[int, int]], wanted: bytes
) -> list[bytes] | None:
    """Find what the unknown pieces must be for all to spell ``wanted``; None unless there is exactly one answer.

    Args:
        pieces: what each token spells.
        unknown: the numbers of the unknown pieces, in order, at least one.
        windows: the part of ``wanted`` that each of them lies in.
        wanted: what all pieces spell.
    """
    # An unknown token stands for something, unless all it can stand for is whitespace, left out here.
    least = [int(low < high) for low, high in windows]
    layout = _Layout.of(pieces, unknown, windows, least, wanted)
    if layout is None or layout.early != layout.late:
        return None
    begins, ends = layout.gaps()
    fills = [wanted[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return fills if all(len(fill) >= size for fill, size in zip(fills, least, strict=True)) else None


def coarse_lengths(
    pieces: Sequence[bytes], unknown: Sequence[int], windows: Sequence[tuple[int, int]], wanted: bytes
) -> tuple[list[int], list[int]] | None:
    """Find lengths of pieces that spell ``wanted``, as far as they are certain; None if the pieces do not spell it.

    Pieces among unknown ones that may stand here or there have no length of their own: the unknown piece after them
    has that of all. The second list has the numbers of the pieces that nothing tells from the one before.

    Args:
        pieces: what each token spells.
        unknown: the numbers of the unknown pieces, in order, at least one.
        windows: the part of ``wanted`` that each of them lies in.
        wanted: what all pieces spell.
    """
    layout = _Layout.of(pieces, unknown, windows, [0] * len(unknown), wanted)
    if layout is None:
        return None
    lengths = [len(piece) for piece in pieces]
    joined: list[int] = []
    begins, ends = layout.gaps()
    begin = begins[0]
    for number, place in enumerate(unknown[:-1]):
        after = unknown[number + 1]
        if layout.early[number] == layout.late[number]:
            lengths[place] = ends[number] - begin
            begin = begins[number + 1]
        else:
            lengths[place:after] = [0] * (after - place)
            joined += range(place + 1, after + 1)
    lengths[unknown[-1]] = ends[-1] - begin
    return lengths, joined


@dataclass(frozen=True)
class _Layout:
    """The known runs between unknown pieces, each as early and as late in what all spell as it can be.

    Any other layout lies between the two: a run whose both places are one can be nowhere else.
    """

    runs: list[bytes]
    """What stands between each unknown piece and the next."""
    early: list[int]
    """Where each run begins at the earliest."""
    late: list[int]
    """Where each run begins at the latest."""
    begin: int
    """Where the first unknown piece begins."""
    end: int
    """Where the last unknown piece ends."""

    @classmethod
    def of(
        cls,
        pieces: Sequence[bytes],
        unknown: Sequence[int],
        windows: Sequence[tuple[int, int]],
        least: Sequence[int],
        wanted: bytes,
    ) -> _Layout | None:
        """Lay the runs out once from the left and once from the right; None if they do not fit.

        ``windows`` and ``least`` are the part of ``wanted`` that each unknown piece lies in, and its least length.
        """
        edges = zip([-1, *unknown], [*unknown, len(pieces)], strict=True)
        first, *runs, last = (b"".join(pieces[before + 1 : after]) for before, after in edges)
        lows, highs = [low for low, _ in windows], [high for _, high in windows]
        end = len(wanted) - len(last)
        if len(first) > end or not wanted.startswith(first) or not wanted.endswith(last):
            return None
        early, place = [], len(first)
        for run, low, high, size in zip(runs, lows[1:], highs, least, strict=False):
            early.append(wanted.find(run, max(place + size, low - len(run)), min(high + len(run), end)))
            place = early[-1] + len(run)
        late, place = [], end
        for run, low, high, size in zip(runs[::-1], lows[:0:-1], highs[-2::-1], least[:0:-1], strict=True):
            late.append(wanted.rfind(run, max(low - len(run), len(first)), max(min(place - size, high + len(run)), 0)))
            place = late[-1]
        return None if -1 in early or -1 in late else cls(runs, early, late[::-1], len(first), end)

    def gaps(self) -> tuple[list[int], list[int]]:
        """List where each unknown piece begins and ends, in the earliest layout."""
        begins = [self.begin, *(at + len(run) for at, run in zip(self.early, self.runs, strict=True))]
        return begins, [*self.early, self.end]
