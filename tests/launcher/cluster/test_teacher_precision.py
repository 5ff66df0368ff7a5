"""What a command does about ``teacher.precision: auto`` once it knows where its workers run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster import teacher_precision
from launcher.cluster.teacher_precision import with_chosen_precision
from uld_ds.recipe import parse_recipe


def _nobody_is_asked(*_arguments: object, **_options: object) -> dict[str, float]:
    raise AssertionError("nothing is to be measured")


def test_one_slow_node_decides_and_what_was_chosen_stays(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_recipe["teacher"]["precision"] = "auto"
    recipe, said = parse_recipe(tiny_recipe), list[str]()
    monkeypatch.setattr(teacher_precision, "_speedups", lambda *_a, **_o: {"10.0.0.1": 2.5, "10.0.0.2": 0.4})
    found = with_chosen_precision(recipe, tmp_path, said.append, on_gpu=False)
    assert found.teacher is not None and found.teacher.precision == "fp32"
    assert [teacher.precision for teacher in found.teachers] == ["fp32"]
    assert said == ["teacher.precision auto is fp32: bf16 is 0.4 times as fast as fp32"]
    assert json.loads((tmp_path / "teacher_precision.json").read_text()) == {"teacher": "fp32"}
    # Resumed elsewhere, it learns from the same teacher.
    monkeypatch.setattr(teacher_precision, "_speedups", _nobody_is_asked)
    for on_gpu in (False, True):
        again = with_chosen_precision(recipe, tmp_path, said.append, on_gpu=on_gpu)
        assert again.teacher_named().precision == "fp32"
    assert len(said) == 1


def test_on_gpus_and_where_a_recipe_says_it_nothing_is_measured(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_precision, "_speedups", _nobody_is_asked)
    recipe = parse_recipe(tiny_recipe)
    assert with_chosen_precision(recipe, tmp_path, print, on_gpu=False) is recipe
    assert not list(tmp_path.glob("*precision*"))
    tiny_recipe["teacher"]["precision"] = "auto"
    found = with_chosen_precision(parse_recipe(tiny_recipe), tmp_path, print, on_gpu=True)
    assert found.teacher_named().precision == "bf16"
