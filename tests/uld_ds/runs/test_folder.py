"""The names in a run's folder: as they are documented, as they have always been, and written down once."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from uld_ds.runs.folder import NAMES, RunFolder, step_of

ROOT = Path(__file__).parents[3]
# Old runs are read and resumed by these names.
ON_DISK = {
    "recipe": "recipe.yaml",
    "prepared": "prepared.json",
    "teacher_precision": "teacher_precision.json",
    "bad_examples": "bad_examples.json",
    "student": "student",
    "teacher": "teacher",
    "rollouts": "rollouts",
    "generated": "answers",
    "progress": "progress.jsonl",
    "logs": "logs",
    "metrics": "metrics",
    "profile": "profile",
    "skipped": "skipped.jsonl",
    "stop": "STOP",
    "stopped": "stopped.txt",
    "outcome": "outcome.json",
    "result": "result.json",
    "export": "export",
    "best": "best",
    "checkpoint_list": "checkpoint_manager_snapshot.json",
    "universal": ".universal",
    "run_id": "mlflow_run_id",
    "run_identity": "mlflow_run_identity",
    "run_status": "mlflow_status",
    "report_page": "report.html",
    "report": "report",
    "report_places": "report/places.json",
    "report_alignments": "report/alignment.json",
    "report_answers": "report/answers.json",
    "report_lineage": "report/lineage.json",
}
# What the table of docs/runs.md leaves out, and why.
INTERNAL = {
    "report": "what report.html is made of",
    "stop": "a person makes it; the section on resuming says so",
    "stopped": "between the workers and the driver; the error repeats it",
    "outcome": "between the workers and the driver; result.json is made of it",
    "generated": "another command's, and only where the recipe names no other place",
    "checkpoint_list": "Ray's own",
    "universal": "there for a moment, while a checkpoint is divided anew",
    "run_id": "MLflow itself tells it",
    "run_identity": "there in case a creation is interrupted",
    "run_status": "gone once MLflow has heard of it",
}
OF_OTHERS = {
    ("uld_ds/data/bad_examples.py", "bad_examples.json"): "of prepared data, which has a folder of its own",
    ("uld_ds/registry/flavor.py", "student"): "in the folder of a registered model",
}


def properties() -> list[str]:
    return [name for name, _ in inspect.getmembers(RunFolder, lambda member: isinstance(member, property))]


def documented() -> list[str]:
    """Names in the first column of the table."""
    text = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
    table = text.partition("## What a run leaves behind")[2].partition("\n\nMLflow")[0]
    return [
        name for row in table.splitlines() if row.startswith("| `") for name in re.findall("`(.+?)`", row.split("|")[1])
    ]


def test_every_name_is_what_it_was() -> None:
    assert {name: str(getattr(NAMES, name)) for name in properties()} == ON_DISK
    assert NAMES.report_snapshot("teacher") == Path("report/teacher.json")
    assert RunFolder(Path("/runs/demo")).progress == Path("/runs/demo/progress.jsonl")


def test_every_documented_name_is_one_of_a_run() -> None:
    known = {path.name for path in map(NAMES.__getattribute__, properties())} | {NAMES.new_checkpoint(7).name}
    names = documented()
    assert len(names) >= 13
    for name in names:
        assert any(fnmatch(item, name.rstrip("/")) for item in known), f"docs/runs.md: nothing is called {name}"


def test_every_name_of_a_run_is_documented_or_internal_for_a_reason() -> None:
    shown = {name.rstrip("/") for name in documented()}
    missing = {name for name in properties() if getattr(NAMES, name).parts[0] not in shown}
    inside = {name for name in properties() if len(getattr(NAMES, name).parts) > 1}
    assert missing - inside == INTERNAL.keys()


def test_every_property_says_in_one_sentence_what_it_is() -> None:
    for name in properties():
        text = inspect.getdoc(getattr(RunFolder, name)) or ""
        assert text.endswith(".") and "\n" not in text, name


def test_checkpoints_sort_by_age_and_no_name_is_taken_twice(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for expected in ("checkpoint_000000006", "checkpoint_000000006_1", "checkpoint_000000006_2"):
        assert folder.new_checkpoint(6).name == expected
        (tmp_path / expected).mkdir()
    (tmp_path / "checkpoint_000000010").mkdir()
    (tmp_path / "checkpoint_000000012").write_text("no folder")
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{}")
    names = [item.name for item in folder.checkpoints()]
    assert names == ["checkpoint_000000006", "checkpoint_000000006_1", "checkpoint_000000006_2", "checkpoint_000000010"]
    assert [item.name for item in folder.checkpoints_of(6)] == names[:3]
    assert [step_of(name) for name in names] == [(6, 0), (6, 1), (6, 2), (10, 0)]
    assert step_of("checkpoint_manager_snapshot.json") == (-1, -1)


def test_nobody_else_writes_these_names_down() -> None:
    """A name that is a word, too, counts where it is joined to a path."""
    names = {path.name for path in map(NAMES.__getattribute__, properties())}
    words = {name for name in names if "." not in name.strip(".") and not name.startswith("mlflow_")}
    found = []
    for package in ("uld_ds", "launcher"):
        for file in sorted((ROOT / package).rglob("*.py")):
            module = str(file.relative_to(ROOT))
            if module == "uld_ds/runs/folder.py":
                continue
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found += [
                (module, text.rpartition("/")[2]) for text in texts(tree) if text.rpartition("/")[2] in names - words
            ]
            found += [(module, text) for text in joined(tree) if text in words]
    assert set(found) == OF_OTHERS.keys()


def texts(tree: ast.AST) -> Iterator[str]:
    """All strings, and the pieces of those that are put together."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def joined(tree: ast.AST) -> Iterator[str]:
    """Strings that are joined to a path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield from texts(node.right)


def test_it_is_cheap_to_import() -> None:
    code = (
        "import sys, uld_ds.runs.folder; print([name for name in sys.modules if name in ('torch', 'pydantic', 'ray')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"
