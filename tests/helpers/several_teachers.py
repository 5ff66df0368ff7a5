"""Recipes of one tiny student with several teachers, each with a tokenizer of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.tiny import save_tiny_model

TERMS = {"ce": 1.0, "uld": 1.5, "likelihood": 0.5, "hybrid": 0.4, "projection": 0.9, "top_ids": 16}
JUDGES = ("code", "general")


def several(
    tiny_recipe: dict[str, Any], folder: Path, rows: list[dict[str, str]], *, routed: bool = False, **objective: Any
) -> dict[str, Any]:
    """The tiny recipe for one worker, with the teachers ``general`` (of the recipe) and ``code`` (another one).

    Args:
        tiny_recipe: recipe with one teacher.
        folder: where the other teacher is made.
        rows: what its tokenizer is trained on.
        routed: whether each row of the data names its judge, by turns.
        objective: changes of the objective.
    """
    other = folder / "code"
    if not other.exists():
        save_tiny_model(other, rows, kind="unigram", vocab_size=520, seed=7)
    recipe = {key: value for key, value in tiny_recipe.items() if key != "teacher"}
    general = tiny_recipe["teacher"] | {"name": "general", "weight": 0.7}
    code = tiny_recipe["teacher"] | {"name": "code", "weight": 0.3, "model": str(other)}
    recipe |= {"teachers": [general, code], "objective": TERMS | objective}
    recipe["cluster"] = tiny_recipe["cluster"] | {"workers": 1}
    recipe["student"] = tiny_recipe["student"] | {"deepspeed": "student_zero2_cpu.json"}
    if routed:
        recipe["objective"] |= {"combine": "route"}
        recipe["data"] = routed_data(tiny_recipe["data"], folder)
    return recipe


def routed_data(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe's data with a column ``judge``: every third row is the one teacher's, the others the other's."""
    changed: dict[str, Any] = {"columns": {"teacher": "judge"}}
    for name in ("train", "eval"):
        lines = Path(data[name]["path"]).read_text().splitlines()
        rows = [json.loads(line) | {"judge": JUDGES[number % 3 > 0]} for number, line in enumerate(lines)]
        path = folder / f"routed-{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        changed[name] = {"source": "files", "path": str(path)}
    return changed


def alone(recipe: dict[str, Any], name: str, **objective: Any) -> dict[str, Any]:
    """The same recipe with one of its teachers as the only one."""
    (teacher,) = (teacher for teacher in recipe["teachers"] if teacher["name"] == name)
    rest = {key: value for key, value in recipe.items() if key != "teachers"}
    plain = {key: value for key, value in teacher.items() if key not in ("name", "weight")}
    return rest | {"teacher": plain, "objective": recipe["objective"] | objective}
