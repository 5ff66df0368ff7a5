"""What a registered version says of the run that it is from."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.recipe_trees import tree_with
from uld_ds.recipe import parse_recipe
from uld_ds.workers.finish import _rollouts


def said_of_own_answers(objective: dict[str, Any], rollouts: dict[str, Any]) -> dict[str, Any]:
    tree = tree_with(objective=objective, rollouts=rollouts, data__eval={"source": "files", "path": "e.jsonl"})
    said: dict[str, Any] = json.loads(_rollouts(parse_recipe(tree)) or "{}")["objective"]
    return {name: value for name, value in said.items() if value != 0}


def test_terms_of_own_answers_alone_are_told_with_their_choices() -> None:
    reverse = {"ce": 1.0, "uld": 0.0, "projection_divergence": "reverse_kl"}
    choices = {"projection_divergence": "reverse_kl", "projection_outcomes": "tokens", "projection_rows": "all"}
    choices |= {"projection_pick": "teacher"}
    assert said_of_own_answers(reverse, {"objective": {"projection": 0.5}}) == {"projection": 0.5} | choices
    assert said_of_own_answers({"ce": 1.0, "uld": 0.5}, {}) == {"uld": 0.5}, "nothing of terms without a weight"
