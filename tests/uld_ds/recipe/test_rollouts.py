"""The section about rollouts: weights of own answers, layers over a recipe that has none, digests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.recipe_trees import TREE, refused, tree_with
from uld_ds.recipe import ObjectiveSettings, load_recipe, parse_recipe
from uld_ds.recipe.objective import LOSS_TERMS
from uld_ds.recipe.rollouts import RolloutSettings, taught

HELD_OUT = {"data__eval": {"source": "files", "path": "e.jsonl"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree_with(**HELD_OUT)))
    return path


def with_rollouts(**keys: Any) -> dict[str, Any]:
    return tree_with(**HELD_OUT, rollouts=keys)


def test_own_answers_have_the_objectives_weights_without_cross_entropy() -> None:
    objective = ObjectiveSettings(ce=0.5, uld=1.5, projection=0.2)
    default, own = RolloutSettings().weights(objective), RolloutSettings(objective={"ce": 0.1, "hybrid": 2.0})
    assert default == {**dict.fromkeys(LOSS_TERMS, 0.0), "uld": 1.5, "projection": 0.2}
    assert own.weights(objective) == {**dict.fromkeys(LOSS_TERMS, 0.0), "ce": 0.1, "hybrid": 2.0}
    every = taught(objective, own)
    assert (every.ce, every.uld, every.projection, every.hybrid, every.classical) == (0.5, 1.5, 0.2, 2.0, 0.0)
    assert every.identity_terms == ["hybrid", "projection"]
    assert (objective.num_top_ids, taught(ObjectiveSettings(), own).num_top_ids) == (64, 64)
    assert taught(objective, None) is objective


@given(share=st.floats(0.001, 1.0), batch=st.integers(2, 64))
def test_a_batch_has_own_and_given_answers(share: float, batch: int) -> None:
    own = RolloutSettings(share=share).own_examples(batch)
    assert 1 <= own <= batch
    assert (own == batch) == (share == 1.0)
    if 1 < own < batch - 1:
        assert abs(own - share * batch) <= 0.5


def test_overrides_make_and_remove_the_section(file: Path) -> None:
    by_key = load_recipe(file, ["rollouts.share=0.25"], environment={})
    assert by_key.rollouts == RolloutSettings(share=0.25)
    assert load_recipe(file, environment={"ULD_DS__ROLLOUTS__SHARE": "0.25"}) == by_key
    whole = load_recipe(file, ["rollouts={share: 0.25, objective: {uld: 1.0}}"], environment={})
    assert whole.rollouts == RolloutSettings(share=0.25, objective={"uld": 1.0})
    assert load_recipe(file, ["rollouts={}"], environment={}).rollouts == RolloutSettings()
    for nothing in ("null", ""):
        removed = load_recipe(file, ["rollouts.share=0.25", f"rollouts={nothing}"], environment={})
        assert removed == parse_recipe(tree_with(**HELD_OUT))
    file.write_text(yaml.safe_dump(tree_with(**HELD_OUT) | {"rollouts": None}))
    assert load_recipe(file, environment={}).rollouts is None
    assert load_recipe(file, ["rollouts.share=0.25"], environment={}) == by_key
    file.write_text(yaml.safe_dump(with_rollouts(share=0.25)))
    assert load_recipe(file, ["rollouts=null"], environment={}).rollouts is None
    path = ["rollouts.prompts={source: files, path: p.jsonl}", "rollouts.objective.uld=0.5"]
    assert load_recipe(file, path, environment={}).rollouts == RolloutSettings.model_validate(
        {"share": 0.25, "prompts": {"source": "files", "path": "p.jsonl"}, "objective": {"uld": 0.5}}
    )


def test_the_resolved_yaml_loads_to_an_equal_recipe(tmp_path: Path) -> None:
    mine = parse_recipe(with_rollouts(share=0.25, engine="vllm", actors={"count": 2}, objective={"uld": 1.0}))
    (tmp_path / "r.yaml").write_text(mine.to_yaml())
    assert load_recipe(tmp_path / "r.yaml", environment={}) == mine


def test_what_shapes_the_student_is_in_the_digest() -> None:
    without = parse_recipe(tree_with(**HELD_OUT))
    vllm = {"engine": "vllm"}
    recipes = [parse_recipe(with_rollouts(**keys)) for keys in ({}, {"every": 5}, {"temperature": 0.5}, vllm)]
    assert len({recipe.digest() for recipe in (without, *recipes)}) == 5
    more_actors = parse_recipe(with_rollouts(**vllm, actors={"count": 3}))
    assert more_actors.digest() == recipes[-1].digest()
    assert recipes[-1].first_difference(more_actors) is None
    assert recipes[0].first_difference(recipes[1]) == "rollouts.every: 25 -> 5"
    assert without.first_difference(recipes[0]) == "rollouts.share: None -> 0.5"
    assert recipes[0].first_difference(without) == "rollouts.share: 0.5 -> None"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rollouts": {"objective": {"cross": 1.0}}}, "rollouts.objective.cross is no term of the objective: ce, uld,"),
        ({"rollouts": {"objective": {"uld": 0.0}}}, "rollouts.objective: every weight is 0, so that nothing is"),
        ({"rollouts": {"objective": {"uld": -1.0}}}, "rollouts.objective.uld: Input should be greater than or equal"),
        ({"rollouts": {"share": 0.0}}, "rollouts.share: Input should be greater than 0"),
        ({"rollouts": {"temperature": 0.0}}, "rollouts.temperature: Input should be greater than 0"),
        ({"rollouts": {"ahead": 2}}, "rollouts.ahead: Input should be less than or equal to 1"),
        ({"rollouts": {"engin": "vllm"}}, "rollouts.engin: unknown key (value 'vllm'); did you mean rollouts.engine?"),
        ({"rollouts": {"engine": "sglang"}}, "rollouts.engine: 'sglang' is not known; choose 'transformers' or 'vllm'"),
        (
            {"rollouts": {"actors": {"count": 2}}},
            "rollouts: rollouts.actors has no effect with rollouts.engine 'transformers': the workers sample",
        ),
        ({"rollouts": {}, "objective": {"uld": 0.0}}, "recipe: rollouts: the objective has no term but ce, and to"),
        (
            {"rollouts": {"objective": {"projection": 1.0}}, "objective": {"merge": "chain"}},
            "recipe: rollouts.objective, with objective: objective.merge 'chain' has no meaning for objective.projecti",
        ),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(changes: dict[str, Any], expected: str) -> None:
    said = refused(**HELD_OUT, **changes)
    assert expected in said, said


def test_a_recipe_without_rollouts_has_none() -> None:
    recipe = parse_recipe(TREE)
    assert (recipe.rollouts, recipe.own_examples) == (None, 0)
    assert recipe.taught is recipe.objective
