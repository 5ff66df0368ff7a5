"""The structure of the code: the measuring on small trees told by hand, the committed picture, and the ceilings."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import floor_plan  # noqa: E402
import import_graph  # noqa: E402
import structure  # noqa: E402

# What a message is (conversations) stands below tasks and recipes, which speak of it.
MOST_ROOMS, MOST_FLOORS = 30, 12
HOUSE = {
    "uld_ds/__init__.py": "__version__ = '1'",
    "uld_ds/ground.py": "def put(): ...",
    "uld_ds/first.py": "from uld_ds.ground import put",
    "uld_ds/upper/__init__.py": '"""The upper room: it has a caption. And more."""',
    "uld_ds/upper/one.py": "from uld_ds.first import a\nfrom uld_ds.upper.two import b",
    "uld_ds/upper/two.py": "import uld_ds.ground",
    "launcher/__init__.py": "",
    "launcher/cli.py": "from uld_ds import __version__\nfrom uld_ds.upper.one import c",
    "benchmarks/speed.py": "import clock",
    "benchmarks/clock.py": "import launcher.cli",
}


@pytest.fixture(scope="module")
def today() -> import_graph.Structure:
    return import_graph.measure()


def measured(root: Path, files: Mapping[str, str]) -> import_graph.Structure:
    """Measure a tree of these files."""
    for name, code in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(code)
    return import_graph.measure(root)


def test_a_room_stands_above_all_that_it_imports(tmp_path: Path) -> None:
    house = measured(tmp_path, HOUSE)
    assert house.floors == {
        "uld_ds": 1, "uld_ds.ground": 1, "uld_ds.first": 2, "uld_ds.upper": 3, "launcher": 4, "benchmarks": 5
    }  # fmt: skip
    assert house.summary() == "6 rooms, 5 floors, 0 circles, 0 arrows back up"
    assert house.rooms_on(1) == ["uld_ds", "uld_ds.ground"]
    assert house.packages == {"uld_ds.upper", "launcher", "benchmarks"}
    assert house.captions["uld_ds.upper"] == "The upper room: it has a caption"


@pytest.mark.parametrize(
    "statement",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from uld_ds.first import name",
        "def late():\n    from uld_ds.first import name",
        "class Late:\n    def method(self):\n        try:\n            import uld_ds.first\n        except E: ...",
        "match 1:\n    case 1:\n        with a:\n            import uld_ds.first",
        "try: ...\nexcept E:\n    import uld_ds.first",
        "while 0: ...\nelse:\n    import uld_ds.first",
        "try: ...\nfinally:\n    import uld_ds.first",
        "from uld_ds import first",
        "from . import first",
        "from .first import name",
    ],
)
def test_every_import_counts(tmp_path: Path, statement: str) -> None:
    files = {
        "uld_ds/__init__.py": "",
        "uld_ds/first.py": "from uld_ds.ground import put",
        "uld_ds/ground.py": statement,
    }
    house = measured(tmp_path, files)
    assert house.circles == [["uld_ds.first", "uld_ds.ground"]]
    assert house.rooms_in_circles == {"uld_ds.first", "uld_ds.ground"}
    assert len(house.back_up) == 1


def test_a_circle_inside_one_room_runs_up_no_floor(tmp_path: Path) -> None:
    files = {"uld_ds/upper/two.py": "from uld_ds.upper.one import c", "uld_ds/upper/one.py": "import uld_ds.upper.two"}
    house = measured(tmp_path, HOUSE | files)
    assert house.circles == [["uld_ds.upper.one", "uld_ds.upper.two"]]
    assert house.back_up == []


def test_a_package_that_hands_on_what_its_modules_take_back_is_a_circle(tmp_path: Path) -> None:
    files = {"uld_ds/upper/__init__.py": "from .two import b", "uld_ds/upper/two.py": "from uld_ds.upper import b"}
    assert measured(tmp_path, HOUSE | files).circles == [["uld_ds.upper", "uld_ds.upper.two"]]


def test_the_lightest_arrow_of_a_loop_runs_back_up(tmp_path: Path) -> None:
    files = {"uld_ds/ground.py": "from uld_ds.upper.one import c", "uld_ds/first.py": "from uld_ds.ground import a, b"}
    house = measured(tmp_path, HOUSE | files | {"uld_ds/upper/one.py": "from uld_ds.first import a, b"})
    assert house.back_up == [("uld_ds.ground", "uld_ds.upper")]
    assert house.floors["uld_ds.ground"] == 1
    assert house.floors["uld_ds.upper"] == 3
    assert house.arrows["uld_ds.upper", "uld_ds.first"] == 2


def test_packages_in_a_loop_of_which_no_file_is_run_back_up(tmp_path: Path) -> None:
    files = {
        "uld_ds/a/x.py": "import uld_ds.b.x",
        "uld_ds/b/x.py": "",
        "uld_ds/a/y.py": "",
        "uld_ds/b/y.py": "import uld_ds.a.y",
    }
    house = measured(tmp_path, files)
    assert house.summary() == "2 rooms, 2 floors, 0 circles, 1 arrow back up"


def test_a_module_may_bear_the_name_of_one_of_the_standard_library(tmp_path: Path) -> None:
    files = {"uld_ds/upper/statistics.py": "import uld_ds.upper.one", "uld_ds/upper/one.py": "import statistics"}
    assert measured(tmp_path, HOUSE | files).circles == []


def test_another_reader_of_imports_finds_the_same() -> None:
    files = import_graph.modules_of(ROOT)
    graph = grimp.build_graph("uld_ds", "launcher", cache_dir=None)
    mine = {
        (importer, imported)
        for module, file in files.items()
        for importer, imported, _ in import_graph.names_taken(module, ast.parse(file.read_text()), files)
        if not importer.startswith("benchmarks.")
    }
    others = {(module, found) for module in graph.modules for found in graph.find_modules_directly_imported_by(module)}
    assert mine == others


def test_what_a_longer_way_implies_is_left_out() -> None:
    graph = {"c": {"a", "b"}, "b": {"a"}, "d": {"a", "c"}}
    assert import_graph.without_implied(graph) == {"c": {"b"}, "b": {"a"}, "d": {"c"}}


def test_spots_are_as_near_as_their_widths_let_them() -> None:
    assert floor_plan._apart([0, 0, 30], [1, 1, 1], [10, 10, 10]) == [-5, 5, 30]
    assert floor_plan._apart([0, 0], [3, 1], [10, 10]) == [-2.5, 7.5]


def test_lines_cross_only_where_they_must() -> None:
    graph = {"a": ["z"], "b": ["y"], "c": ["x"]}
    plan = floor_plan.plan_of(dict.fromkeys("abc", 2) | dict.fromkeys("xyz", 1), graph, lambda spot: 10)
    places = [(plan.x[upper, 2], plan.x[lower, 1]) for upper, (lower,) in graph.items()]
    assert [above for above, _ in places] == [below for _, below in places]
    assert {above for above, _ in places} == {-10, 0, 10}


def test_a_shaft_is_straight_and_shared() -> None:
    floors = {"top": 4, "next": 3, "side": 2, "ground": 1}
    plan = floor_plan.plan_of(floors, {"top": ["ground", "next"], "next": ["ground", "side"]}, lambda spot: 10)
    assert plan.below["top", 4] == [("ground", 3), ("next", 3)]
    assert plan.below["next", 3] == [("ground", 2), ("side", 2)]
    assert plan.above["ground", 1] == [("ground", 2)]
    assert plan.x["ground", 3] == plan.x["ground", 2]
    assert abs(plan.x["ground", 3] - plan.x["next", 3]) >= 10


def test_the_picture_has_every_room_and_says_what_is_wrong(tmp_path: Path) -> None:
    files = {"uld_ds/ground.py": "from uld_ds.first import name"}
    picture = structure.Picture(measured(tmp_path, HOUSE | files)).draw()
    words = [element.text for element in ET.fromstring(picture).iter() if element.text]
    assert {"benchmarks", "launcher", "upper", "first", "ground", "__init__"} <= set(words)
    assert "The upper room: it has a" in words
    assert words[-1].startswith("Orange:")
    assert picture.count('class="room file circle"') == 2
    assert picture.count('class="up"') == 1
    assert "Orange:" not in structure.Picture(measured(tmp_path, HOUSE)).draw()


def test_check_fails_where_the_picture_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house = measured(tmp_path, HOUSE)
    monkeypatch.setattr(structure, "measure", lambda: house)
    monkeypatch.setattr(structure, "PICTURE", tmp_path / "packages.svg")

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["structure.py", *arguments])
        structure.main()

    with pytest.raises(SystemExit, match=r"packages\.svg is not what the code draws: run python docs/structure\.py"):
        run("--check")
    run()
    run("--check")
    assert capsys.readouterr().out.count("floor  3  upper") == 3
    (tmp_path / "packages.svg").write_text("another")
    with pytest.raises(SystemExit, match="is not what the code draws"):
        run("--check")
    run("--json")
    assert '"rooms": 6,\n  "floors": 5,\n  "circles": 0,\n  "arrows_back_up": 0' in capsys.readouterr().out
    assert (tmp_path / "packages.svg").read_text() == "another"


def test_the_committed_picture_is_what_the_code_draws() -> None:
    """In a process whose sets are ordered otherwise than in the one that drew it."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "structure.py"), "--check"],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_no_circle_and_no_arrow_back_up(today: import_graph.Structure) -> None:
    assert (today.circles, today.back_up) == ([], []), structure.as_text(today)


def test_few_rooms_on_few_floors(today: import_graph.Structure) -> None:
    found = (len(today.floors), today.num_floors)
    assert found[0] <= MOST_ROOMS and found[1] <= MOST_FLOORS, structure.as_text(today)
