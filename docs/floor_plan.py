"""Where rooms stand in the picture of floors, and by which ways their arrows come down.

An arrow over several floors goes down a shaft: a place that it keeps free on each floor between. All arrows to one room
share its shafts, so that a room that many import has one line that gathers them, not a line for each.

Rooms are put in order so that few lines cross, by turns from above and from below; then each goes as near to the
middle of what it is tied to as its neighbors let it. Floats are added by ``math.fsum``: what ``sum`` makes of them
depends on the version of Python, and the same code is to give the same picture.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

ORDER_SWEEPS, PLACE_SWEEPS = 30, 60

Spot = tuple[str, int]
"""A room on its floor; or, on a higher floor than the room's own, its shaft there."""
Row = list[Spot]
Ties = Mapping[Spot, list[Spot]]


@dataclass
class FloorPlan:
    """The spots of each floor from left to right (the ground first), what each is tied to, and where each is."""

    rows: list[Row]
    above: Ties
    below: Ties
    x: dict[Spot, float] = field(default_factory=dict)


def plan_of(floors: Mapping[str, int], graph: Mapping[str, Iterable[str]], width: Callable[[Spot], float]) -> FloorPlan:
    """Place rooms: ``graph`` leads from higher floors to lower ones, ``width`` includes the space around a spot."""
    above, below = _shafts(floors, graph)
    spots = sorted({(room, floor) for room, floor in floors.items()} | set(above) | set(below))
    rows = [[spot for spot in spots if spot[1] == floor] for floor in range(1, max(floors.values(), default=0) + 1)]
    plan = FloorPlan(_ordered(rows, above, below), above, below)
    _place(plan, floors, width)
    for _ in range(2):
        for room in sorted(floors, key=lambda room: (-floors[room], room)):
            _straighten(plan, (room, floors[room]), width)
    return plan


def _shafts(floors: Mapping[str, int], graph: Mapping[str, Iterable[str]]) -> tuple[Ties, Ties]:
    above: dict[Spot, list[Spot]] = defaultdict(list)
    below: dict[Spot, list[Spot]] = defaultdict(list)
    for room in sorted(graph):
        for end in sorted(graph[room]):
            spot = (room, floors[room])
            for floor in range(floors[room] - 1, floors[end] - 1, -1):
                if (end, floor) not in below[spot]:
                    below[spot].append((end, floor))
                    above[end, floor].append(spot)
                spot = (end, floor)
    return above, below


# --- in which order ---------------------------------------------------------------------------------------------


def _ordered(rows: list[Row], above: Ties, below: Ties) -> list[Row]:
    """Sweep down and up, and keep the order with the fewest crossings."""
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(ORDER_SWEEPS):
        down = sweep % 2 == 0
        rows = [list(row) for row in rows]
        for floor in range(len(rows) - 2, -1, -1) if down else range(1, len(rows)):
            neighbors = rows[floor + 1 if down else floor - 1]
            rows[floor] = _by_middle(rows[floor], neighbors, above if down else below)
        for floor in range(len(rows)):
            _exchange(rows, floor, above, below)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _by_middle(row: Row, neighbors: Row, ties: Ties) -> Row:
    """Sort a row by the mean place of what each spot is tied to; a spot that is tied to nothing stays where it is."""
    place = {spot: number / max(len(neighbors) - 1, 1) for number, spot in enumerate(neighbors)}
    middle = {}
    for number, spot in enumerate(row):
        tied = ties.get(spot, [])
        own = number / max(len(row) - 1, 1)
        middle[spot] = math.fsum(place[other] for other in tied) / len(tied) if tied else own
    return sorted(row, key=lambda spot: middle[spot])


def _exchange(rows: list[Row], floor: int, above: Ties, below: Ties) -> None:
    """Exchange neighbors of a row as long as that takes crossings away."""
    row, sides = rows[floor], []
    for ties, other in ((above, floor + 1), (below, floor - 1)):
        if 0 <= other < len(rows):
            sides.append((ties, {spot: number for number, spot in enumerate(rows[other])}))
    better = True
    while better:
        better = False
        for left in range(len(row) - 1):
            gain = 0
            for ties, place in sides:
                first, second = (sorted(place[o] for o in ties.get(spot, [])) for spot in row[left : left + 2])
                gain += _crossed(first, second) - _crossed(second, first)
            if gain > 0:
                row[left], row[left + 1] = row[left + 1], row[left]
                better = True


def _crossed(left: list[int], right: list[int]) -> int:
    return sum(a > b for a in left for b in right)


def _crossings(rows: list[Row], below: Ties) -> int:
    total = 0
    for lower, upper in itertools.pairwise(rows):
        place = {spot: number for number, spot in enumerate(lower)}
        ends = [[place[other] for other in below.get(spot, [])] for spot in upper]
        total += sum(_crossed(ends[a], ends[b]) for a in range(len(ends)) for b in range(a + 1, len(ends)))
    return total


# --- how far to the right ---------------------------------------------------------------------------------------


def _place(plan: FloorPlan, floors: Mapping[str, int], width: Callable[[Spot], float]) -> None:
    """Move each row toward what it is tied to, by turns from above and from below, then from both."""
    for row in plan.rows:
        plan.x.update(zip(row, _apart([0.0] * len(row), [1.0] * len(row), [*map(width, row)]), strict=True))
    for sweep in range(PLACE_SWEEPS):
        down = sweep % 2 == 0
        sides = [plan.above if down else plan.below] if sweep < PLACE_SWEEPS // 2 else [plan.above, plan.below]
        for row in reversed(plan.rows) if down else plan.rows:
            wanted, weights = zip(*(_wanted(spot, sides, plan.x, floors) for spot in row), strict=True)
            plan.x.update(zip(row, _apart(wanted, weights, [*map(width, row)]), strict=True))


def _wanted(spot: Spot, sides: list[Ties], x: Mapping[Spot, float], floors: Mapping[str, int]) -> tuple[float, float]:
    """Tell where a spot would be best, and how strongly: shafts weigh most, since a bend in one is seen first."""
    pulls = []
    for other in (other for ties in sides for other in ties.get(spot, [])):
        shafts = (floors[spot[0]] != spot[1]) + (floors[other[0]] != other[1])
        pulls.append((8.0**shafts, x[other]))
    if not pulls:
        return x[spot], 0.1
    weight = math.fsum(strength for strength, _ in pulls)
    return math.fsum(strength * place for strength, place in pulls) / weight, weight


def _straighten(plan: FloorPlan, room: Spot, width: Callable[[Spot], float]) -> None:
    """Move the shafts of a room from the lowest up, as many in one line as the spots beside them let be."""
    if (room[0], room[1] + 1) not in plan.above:
        return
    run: list[Spot] = []
    low, high = -math.inf, math.inf
    for floor in range(room[1] + 1, len(plan.rows) + 1):
        spot = (room[0], floor)
        if spot not in plan.above:
            break
        left, right = _slack(plan, spot, width)
        if max(low, left) > min(high, right):
            run, low, high = [], -math.inf, math.inf
        run.append(spot)
        low, high = max(low, left), min(high, right)
        wanted = plan.x[room] if run[0][1] == room[1] + 1 else plan.x[run[0]]
        plan.x.update(dict.fromkeys(run, min(max(wanted, low), high)))


def _slack(plan: FloorPlan, spot: Spot, width: Callable[[Spot], float]) -> tuple[float, float]:
    """Tell how far to the left and to the right a spot can go."""
    row = plan.rows[spot[1] - 1]
    number = row.index(spot)
    left, right = row[max(number - 1, 0)], row[min(number + 1, len(row) - 1)]
    low = -math.inf if left == spot else plan.x[left] + (width(left) + width(spot)) / 2
    high = math.inf if right == spot else plan.x[right] - (width(right) + width(spot)) / 2
    return min(low, plan.x[spot]), max(high, plan.x[spot])


def _apart(wanted: Sequence[float], weights: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Find the places nearest to those wanted (in weighted squares) that keep the order and the widths.

    Without widths they would have to ascend: where they do not, neighbors are pooled at their mean until they do.
    """
    offsets = [math.fsum(widths[:number]) + widths[number] / 2 for number in range(len(widths))]
    pools: list[tuple[float, float, int]] = []
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        place, total, members = want - offset, weight, 1
        while pools and pools[-1][0] > place:
            other, its, more = pools.pop()
            place = (place * total + other * its) / (total + its)
            total, members = total + its, members + more
        pools.append((place, total, members))
    places = [place for place, _, members in pools for _ in range(members)]
    return [place + offset for place, offset in zip(places, offsets, strict=True)]
