"""What identifies a student's teachers: of one as ever, of several each by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.stores import build
from uld_ds.recipe import parse_recipe
from uld_ds.registry.lineage import _teachers
from uld_ds.registry.provenance import teacher_facts


def test_each_of_several_teachers_is_identified(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    place, path = tiny_recipe["teacher"]["model"], str(tmp_path / "store")
    build(path)
    one = teacher_facts(parse_recipe(tiny_recipe), {"teacher": place})
    assert set(one) == {"teacher", "teacher_revision", "teacher_digest", "teacher_tokenizer_digest"}
    stored = {"source": "stored", "path": path}
    kept = teacher_facts(parse_recipe(tiny_recipe | {"teacher": stored}), {"teacher": ""})
    tree = {key: value for key, value in tiny_recipe.items() if key != "teacher"}
    general = tiny_recipe["teacher"] | {"name": "general", "weight": 0.7}
    both = parse_recipe(tree | {"teachers": [general, stored | {"name": "code", "weight": 0.3}]})
    facts = teacher_facts(both, {"general": place, "code": ""})
    assert facts["teacher"] == f"{one['teacher']}, {kept['teacher']}"
    assert facts["teacher_digest"] not in (one["teacher_digest"], kept["teacher_digest"])
    named = json.loads(facts["teachers"])
    assert list(named) == ["general", "code"]
    assert named["general"] == {"weight": 0.7} | {key: value for key, value in one.items() if value is not None}
    assert named["code"] == {"weight": 0.3} | {key: value for key, value in kept.items() if value is not None}
    assert named["code"]["teacher_store"] == path
    assert _teachers(facts["teachers"]) == named
    assert _teachers(facts["teachers"][:40]) == {"teachers": facts["teachers"][:40]}
