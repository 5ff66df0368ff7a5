"""Rooms, floors, circles and arrows back up: what the imports of the code make of it.

Room: a package or a module right under uld_ds/; launcher/ and benchmarks/ are one room each.
Arrow: a room imports another.
Floor: a room stands above all that it imports; floor 1 is the ground.
Circle: files that reach one another by imports, in one room or in several.
Arrow back up: where rooms reach one another, the arrows that carry the fewest names are set aside until each room has
a floor; those lead from a lower floor to a higher one.

Every import counts: inside a function, and under TYPE_CHECKING, too. Each counts for the file that it names: the
``__init__.py`` of packages on the way is not counted beside it. The source is parsed and never imported, so benchmarks
(scripts, not a package) and the small trees of a test are read alike.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPENED = "uld_ds"
FOLDERS = (OPENED, "launcher", "benchmarks")

Arrow = tuple[str, str]
Graph = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Structure:
    """What the imports of a tree make of it.

    ``floors`` holds each room's floor, ``arrows`` the number of names that one room takes from another, ``back_up``
    those of the arrows that lead to a higher floor, ``circles`` the modules of each circle, and ``captions`` the first
    sentence of the docstring of each room that has one. ``packages`` are the rooms that are folders.
    """

    floors: dict[str, int]
    arrows: dict[Arrow, int]
    back_up: list[Arrow]
    circles: list[list[str]]
    captions: dict[str, str]
    packages: set[str]

    @property
    def num_floors(self) -> int:
        """The number of the top floor."""
        return max(self.floors.values(), default=0)

    def summary(self) -> str:
        """Say the four numbers in a line."""
        counts = {
            "room": len(self.floors),
            "floor": self.num_floors,
            "circle": len(self.circles),
            "arrow": len(self.back_up),
        }
        return ", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items()) + " back up"

    @property
    def rooms_in_circles(self) -> set[str]:
        """The rooms of the modules of circles."""
        return {room_of(module) for circle in self.circles for module in circle}

    def rooms_on(self, floor: int) -> list[str]:
        """Name the rooms of a floor."""
        return sorted(room for room, at in self.floors.items() if at == floor)


def measure(root: Path = ROOT) -> Structure:
    """Measure the three folders under ``root``."""
    files = modules_of(root)
    trees = {module: ast.parse(file.read_text(encoding="utf-8"), str(file)) for module, file in files.items()}
    imports = [taken for module, tree in trees.items() for taken in set(names_taken(module, tree, files))]
    arrows = Counter((room_of(importer), room_of(imported)) for importer, imported, _ in imports)
    arrows = Counter({(begin, end): names for (begin, end), names in arrows.items() if begin != end})
    back_up = arrows_back_up(arrows)
    kept = graph_of(arrow for arrow in arrows if arrow not in back_up)
    floors = floors_of(sorted({room_of(module) for module in files}), kept)
    circles = circles_of(graph_of((importer, imported) for importer, imported, _ in imports))
    captions = {module: caption_of(tree) for module, tree in trees.items() if module == room_of(module)}
    packages = {room_of(module) for module in files if room_of(module) != module}
    return Structure(floors, dict(sorted(arrows.items())), back_up, circles, captions, packages)


# --- what is imported -------------------------------------------------------------------------------------------


def modules_of(root: Path) -> dict[str, Path]:
    """List the files under ``root`` by their dotted names; a package goes by the name of its folder."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room_of(module: str) -> str:
    """Name the room that a module belongs to: itself, a package right under the library, or a whole folder."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == OPENED else parts[0]


def names_taken(importer: str, tree: ast.AST, files: Mapping[str, Path]) -> Iterator[tuple[str, str, str]]:
    """Yield (importer, module, name) for all that a file takes from another of these, wherever the statement stands."""
    folder = importer.rpartition(".")[0]
    # Scripts, whose folder is no package, know those beside them by their bare names.
    beside = "" if folder in files else f"{folder}."
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(importer, node, files)
            submodules = {alias.name: f"{source}.{alias.name}" for alias in node.names}
            wanted = [(whole, "") if whole in files else (source, name) for name, whole in submodules.items()]
        else:
            continue
        for module, name in wanted:
            found = module if module in files else f"{beside}{module}"
            if found in files and found != importer:
                yield importer, found, name


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield each statement at any depth; expressions hold none, and are most of a tree."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, block, None)
            waiting += inner if isinstance(inner, list) else []


def _absolute(importer: str, node: ast.ImportFrom, files: Mapping[str, Path]) -> str:
    if not node.level:
        return node.module or ""
    inside = importer.split(".")
    inside = inside[: len(inside) - node.level + (files[importer].name == "__init__.py")]
    return ".".join([*inside, *([node.module] if node.module else [])])


def caption_of(tree: ast.Module) -> str:
    """Take the first sentence of a module's docstring."""
    words = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return words.partition(". ")[0].rstrip(".")


# --- what follows from it ---------------------------------------------------------------------------------------


def graph_of(arrows: Iterable[Arrow]) -> dict[str, set[str]]:
    """Gather arrows by where they begin."""
    graph = defaultdict(set)
    for begin, end in arrows:
        graph[begin].add(end)
    return dict(graph)


def reached_from(begin: str, graph: Graph) -> set[str]:
    """Collect all that is reached in one step or more; ``begin`` itself only where a loop leads back to it."""
    reached: set[str] = set()
    waiting = list(graph.get(begin, ()))
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(graph.get(node, ()))
    return reached


def circles_of(graph: Graph) -> list[list[str]]:
    """Group the nodes that reach one another; sorted, and each group sorted."""
    reached = {node: reached_from(node, graph) for node in graph}
    groups = {
        tuple(sorted(other for other in reached[node] if node in reached.get(other, ())))
        for node in graph
        if node in reached[node]
    }
    return [list(group) for group in sorted(groups)]


def arrows_back_up(arrows: Mapping[Arrow, int]) -> list[Arrow]:
    """Pick the arrows to set aside, so that the others make no loop: within each loop the lightest.

    The heaviest is laid first, and an arrow that would close a loop with those laid before it is set aside.
    """
    laid: dict[str, set[str]] = defaultdict(set)
    aside = []
    for (begin, end), _ in sorted(arrows.items(), key=lambda item: (-item[1], item[0])):
        if begin in reached_from(end, laid):
            aside.append((begin, end))
        else:
            laid[begin].add(end)
    return sorted(aside)


def floors_of(rooms: Iterable[str], graph: Graph) -> dict[str, int]:
    """Count for each room the rooms of its longest way down, itself included; ``graph`` has no loop."""

    @functools.cache
    def floor(room: str) -> int:
        return 1 + max((floor(below) for below in graph.get(room, ())), default=0)

    return {room: floor(room) for room in rooms}


def without_implied(graph: Graph) -> dict[str, set[str]]:
    """Leave out each arrow that a longer way implies; ``graph`` has no loop."""
    reached = {node: reached_from(node, graph) for node in graph}
    return {
        node: {end for end in ends if not any(end in reached.get(other, ()) for other in ends)}
        for node, ends in graph.items()
    }
