"""Keys that are gone: told of where a recipe sets them, without a trace where they have their former defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.recipe_trees import TREE, message, refused, tree_with
from uld_ds.recipe import Recipe, load_recipe, parse_recipe
from uld_ds.recipe.removed_keys import REMOVED_KEYS, with_removed_keys, without_removed_keys
from uld_ds.recipe.validation_errors import known_keys

DEFAULTS: dict[str, Any] = {"uld_gate": None, "schedule": {}, "likelihood_run": 1, "likelihood_boundary": 0.0}
WEIGHTS: dict[str, Any] = {"ce": 0.7, "uld": 0.3, "likelihood": 0.5}
# Of the last version with these keys, for TREE, and for TREE with WEIGHTS.
DIGESTS = {
    "d171ec9768dc2e0a5a5b30c8f48bbcf326ed1914c511e5ba4e95bde72c5ca838": {},
    "883c125ef735fbb12accec56c67f1780414a3274ad52ab75a9b7393c9bb287e4": WEIGHTS,
}

NO_DIFFERENCE = "no difference was shown (docs/objectives.md); delete the key"
NO_GAIN = "nothing showed that it helps (docs/objectives.md); delete the key"
SAID = {
    "uld_gate": f"objective.uld_gate: was removed: {NO_DIFFERENCE}",
    "schedule": f"objective.schedule: was removed: {NO_DIFFERENCE}",
    "likelihood_run": f"objective.likelihood_run: was removed: {NO_GAIN}",
    "likelihood_boundary": f"objective.likelihood_boundary: was removed: {NO_GAIN}",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uld_gate", 10),
        ("schedule", {"uld": {"kind": "linear", "to": 0.0}}),
        ("schedule", None),
        ("likelihood_run", 4),
        ("likelihood_boundary", 0.1),
    ],
)
def test_a_recipe_that_sets_one_is_told_why_it_is_gone(key: str, value: Any) -> None:
    assert refused(objective={**WEIGHTS, key: value}) == SAID[key]
    # Before anything else that is wrong, and without a guess at another key.
    assert refused(objective={**WEIGHTS, key: value}, training__stepz=3) == SAID[key]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("objective.uld_gate=10", "uld_gate"),
        ("objective.schedule.uld.kind=warmup", "schedule"),
        ("objective.schedule={uld: {kind: warmup, steps: 0.2}}", "schedule"),
        ("objective.likelihood_run=4", "likelihood_run"),
        ("objective.likelihood_boundary=0.1", "likelihood_boundary"),
    ],
)
def test_so_is_an_override(file: Path, override: str, key: str) -> None:
    # Over a recipe that has none of them, and over an older run's, which has all.
    for objective in (WEIGHTS, WEIGHTS | DEFAULTS):
        file.write_text(yaml.safe_dump(tree_with(objective=objective)))
        assert message(load_recipe, file, [override], environment={}) == SAID[key]
        name, _, value = override.partition("=")
        variables = {f"ULD_DS__{name.replace('.', '__').upper()}": value}
        assert message(load_recipe, file, environment=variables) == SAID[key]


def test_an_override_may_take_one_back(file: Path) -> None:
    file.write_text(yaml.safe_dump(tree_with(objective={**WEIGHTS, "uld_gate": 10})))
    assert load_recipe(file, ["objective.uld_gate=null"], environment={}) == parse_recipe(tree_with(objective=WEIGHTS))


def test_at_their_former_defaults_they_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_recipe(tree_with(objective=WEIGHTS | DEFAULTS)) == parse_recipe(tree_with(objective=WEIGHTS))
    assert caplog.messages == []
    assert refused(objective=[1]) == "objective: [1] is not a section; write its keys below it"


@pytest.mark.parametrize("digest", DIGESTS)
def test_an_older_run_is_the_same_run(file: Path, digest: str) -> None:
    mine = parse_recipe(tree_with(objective=DIGESTS[digest]))
    file.write_text(yaml.safe_dump(with_removed_keys(mine.model_dump(mode="json"))))
    assert "uld_gate: null" in file.read_text() and "schedule: {}" in file.read_text()
    stored = load_recipe(file, environment={})
    assert stored.first_difference(mine) is None
    assert stored.digest() == mine.digest() == digest


def test_there_and_back() -> None:
    whole = parse_recipe(TREE).model_dump(mode="json")
    former = with_removed_keys(whole)
    assert former["objective"] == whole["objective"] | DEFAULTS
    assert without_removed_keys(former) == whole, "and neither changed what it was given"


def test_the_table_is_about_keys_that_are_not_there() -> None:
    assert not REMOVED_KEYS.keys() & set(known_keys(Recipe))
    assert {key.partition(".")[0] for key in REMOVED_KEYS} <= Recipe.model_fields.keys()
