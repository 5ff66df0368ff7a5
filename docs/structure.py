"""The structure of the code, measured and drawn from its own imports.

    python docs/structure.py            # prints rooms, floors, circles and arrows back up; writes docs/packages.svg
    python docs/structure.py --json     # prints the numbers and what stands behind them as JSON; writes nothing
    python docs/structure.py --check    # writes nothing; fails where docs/packages.svg is not what the code draws

docs/import_graph.py says at its head what a room, a floor, a circle and an arrow back up are. The picture leaves out an
arrow that a longer way implies, and gathers the arrows to one room in one line. It needs Python alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap

from drawing import svg, text
from floor_plan import Spot, plan_of
from import_graph import OPENED, ROOT, Structure, graph_of, measure, without_implied

PICTURE = ROOT / "docs" / "packages.svg"
STYLE = """
.band{fill:#8c959f;fill-opacity:.1}.room{fill:#ddeeff;stroke:#0969da}.room.file{fill:#fff}
.room.outer{fill:#fbefcf;stroke:#8c6d1f}.room.circle{stroke:#bc4c00;stroke-width:2.5}text.name{font-weight:600}
.way{fill:none;stroke:#6e7781;stroke-width:1.3}.tip{fill:#6e7781}.up{fill:none;stroke:#bc4c00;stroke-width:2}
.up.tip{fill:#bc4c00;stroke:none}text.says{font:12px system-ui,sans-serif;fill:#57606a}
@media(prefers-color-scheme:dark){.room{fill:#12304f;stroke:#58a6ff}.room.file{fill:#0d1117}
.room.outer{fill:#3a2f12;stroke:#d9b44a}.room.circle,.up{stroke:#ff8e4d}.up.tip{fill:#ff8e4d}
.way{stroke:#9ea7b3}.tip{fill:#9ea7b3}text.says{fill:#a6b0bb}}"""
CAPTION_LETTERS, CAPTION_LINES = 26, 2
LETTER, SMALL_LETTER, LINE = 8.5, 6.9, 16.0
"""Pixels of a letter of a name and of a caption, and of a caption's line."""
LEFT, TOP, STORY, TIP = 48.0, 48.0, 38.0, 7.0
"""Pixels left of the rooms, above the top floor, between two floors, and of an arrow's head."""
ROOM_SPACE, SHAFT_SPACE = 20.0, 16.0
LEGEND = [
    "A room stands above all that it imports; a tinted box is a package, a plain one a file.",
    "An arrow is an import; one that a longer way implies is not drawn.",
]
TROUBLE = "Orange: files that import one another in a circle, and arrows that run back up."


class Picture:
    """Rooms as boxes on bands, the ground at the bottom."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        kept = graph_of(arrow for arrow in structure.arrows if arrow not in structure.back_up)
        self.plan = plan_of(structure.floors, without_implied(kept), self._space)
        self.spots = [spot for row in self.plan.rows for spot in row]
        edges = [(self.plan.x[spot], self._space(spot) / 2) for spot in self.spots] or [(0.0, 0.0)]
        self.shift = LEFT - min(x - half for x, half in edges)
        self.width = max(max(x + half for x, half in edges) + self.shift + 8, 520)
        self.top: dict[int, float] = {}
        self.bottom = TOP
        for floor in range(structure.num_floors, 0, -1):
            self.top[floor] = self.bottom + (STORY if floor < structure.num_floors else 0)
            self.bottom = self.top[floor] + self._band_height(floor)

    def draw(self) -> str:
        """Give the SVG."""
        rooms = [spot for spot in self.spots if self._is_room(spot)]
        parts = [text(LEFT, 26, self.structure.summary(), "name"), *map(self._band, self.top)]
        parts += [self._way(spot, other) for spot in self.spots for other in self.plan.below.get(spot, [])]
        parts += [self._shaft(spot) for spot in self.spots if not self._is_room(spot)]
        parts += [part for spot in rooms for part in self._room(spot)]
        parts += [self._way_up(*arrow) for arrow in self.structure.back_up]
        legend = LEGEND + ([TROUBLE] if self.structure.circles or self.structure.back_up else [])
        for number, line in enumerate(legend):
            parts.append(text(LEFT, self.bottom + 26 + 18 * number, line, "says"))
        height = self.bottom + 26 + 18 * len(legend)
        return svg(round(self.width), round(height), "The packages of the code on their floors", parts, STYLE)

    def _is_room(self, spot: Spot) -> bool:
        return self.structure.floors[spot[0]] == spot[1]

    def _caption(self, room: str) -> list[str]:
        """Wrap what a package says of itself, up to its colon where all is too long; a file's box has a name alone."""
        says = self.structure.captions.get(room, "") if room in self.structure.packages else ""
        lines = textwrap.wrap(says, CAPTION_LETTERS, break_on_hyphens=False)
        if len(lines) > CAPTION_LINES:
            says = re.split("[:;]", says)[0]
            lines = textwrap.wrap(says, CAPTION_LETTERS, max_lines=CAPTION_LINES, placeholder=" …")
        return lines

    def _size(self, room: str) -> tuple[float, float]:
        caption = self._caption(room)
        letters = max([SMALL_LETTER * len(line) for line in caption], default=0)
        return max(LETTER * len(_name(room)), letters) + 16, 30 + LINE * len(caption)

    def _space(self, spot: Spot) -> float:
        return self._size(spot[0])[0] + ROOM_SPACE if self._is_room(spot) else SHAFT_SPACE

    def _band_height(self, floor: int) -> float:
        return max(self._size(room)[1] for room in self.structure.rooms_on(floor)) + 12

    def _reach(self, spot: Spot) -> tuple[float, float, float]:
        """Tell a spot's middle, its top and its bottom."""
        top, height = self.top[spot[1]], self._band_height(spot[1])
        spare = (height - self._size(spot[0])[1]) / 2 if self._is_room(spot) else 0.0
        return self.plan.x[spot] + self.shift, top + spare, top + height - spare

    # --- the parts

    def _band(self, floor: int) -> str:
        height = self._band_height(floor)
        box = f'<rect x="8" y="{self.top[floor]:.1f}" width="{self.width - 16:.1f}" height="{height:.1f}" rx="6"'
        return f'{box} class="band"/>' + text(30, self.top[floor] + height / 2 + 4, str(floor), "small", "end")

    def _room(self, spot: Spot) -> list[str]:
        room = spot[0]
        (x, top, _), (width, height) = self._reach(spot), self._size(room)
        kind = "room" if room in self.structure.packages else "room file"
        kind = kind if room.startswith(OPENED) else "room outer"
        kind += " circle" if room in self.structure.rooms_in_circles else ""
        box = f'<rect x="{x - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5"'
        parts = [f'{box} class="{kind}"/>', text(x, top + 20, _name(room), "name", "middle")]
        for number, line in enumerate(self._caption(room)):
            parts.append(text(x, top + 37 + LINE * number, line, "says", "middle"))
        if self.plan.above.get(spot):
            parts.append(_tip(x, top, "tip"))
        return parts

    def _way(self, spot: Spot, other: Spot) -> str:
        """Lead from a room's lower edge, or a shaft's end, to the room or shaft on the floor below."""
        (begin, _, low), (end, high, _) = self._reach(spot), self._reach(other)
        if self._is_room(spot):
            begin += self._door(spot, other)
        return _curve(begin, low, end, high - (TIP if self._is_room(other) else 0), "way")

    def _door(self, spot: Spot, other: Spot) -> float:
        """Share a room's lower edge among the ways out of it, from left to right."""
        ways = sorted(self.plan.below[spot], key=lambda below: self.plan.x[below])
        step = min(16.0, self._size(spot[0])[0] * 0.8 / len(ways))
        return step * (ways.index(other) - (len(ways) - 1) / 2)

    def _shaft(self, spot: Spot) -> str:
        x, top, bottom = self._reach(spot)
        return f'<path class="way" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'

    def _way_up(self, begin: str, end: str) -> str:
        """Lead straight from a room's upper edge to the lower edge of the room above it that it imports."""
        floors = self.structure.floors
        (x, high, _), (to, _, low) = self._reach((begin, floors[begin])), self._reach((end, floors[end]))
        return _curve(x + 14, high, to + 14, low + TIP, "up") + _tip(to + 14, low, "up tip", -TIP)


def _name(room: str) -> str:
    return "__init__" if room == OPENED else room.removeprefix(f"{OPENED}.")


def _curve(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    middle = (y + to_y) / 2
    bend = f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
    return f'<path class="{kind}" d="M{x:.1f} {y:.1f}{bend}"/>'


def _tip(x: float, y: float, kind: str, length: float = TIP) -> str:
    return f'<path class="{kind}" d="M{x:.1f} {y:.1f}l-4 {-length:g}h8z"/>'


def as_text(structure: Structure) -> str:
    """Say the numbers, then the rooms from the top floor down, then each circle and each arrow back up."""
    lines = [structure.summary(), ""]
    for floor in range(structure.num_floors, 0, -1):
        lines.append(f"floor {floor:2}  {' '.join(map(_name, structure.rooms_on(floor)))}")
    lines += [f"circle    {' '.join(circle)}" for circle in structure.circles]
    lines += [f"back up   {begin} -> {end}" for begin, end in structure.back_up]
    return "\n".join(lines)


def as_json(structure: Structure) -> str:
    """Give the numbers and what stands behind them as JSON."""
    numbers = {
        "rooms": len(structure.floors),
        "floors": structure.num_floors,
        "circles": len(structure.circles),
        "arrows_back_up": len(structure.back_up),
        "arrows": len(structure.arrows),
        "floor_of_room": structure.floors,
        "modules_of_circle": structure.circles,
        "back_up": structure.back_up,
    }
    return json.dumps(numbers, indent=2)


def main() -> None:
    """Print and draw, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--json", action="store_true", help="print the numbers as JSON and write nothing")
    only.add_argument("--check", action="store_true", help="fail where the picture is not what the code draws")
    options = parser.parse_args()
    structure = measure()
    print(as_json(structure) if options.json else as_text(structure))
    if options.json:
        return
    drawn = Picture(structure).draw()
    if not options.check:
        PICTURE.write_text(drawn, encoding="utf-8")
    elif not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != drawn:
        sys.exit(f"error: docs/{PICTURE.name} is not what the code draws: run python docs/structure.py and commit it")


if __name__ == "__main__":
    main()
