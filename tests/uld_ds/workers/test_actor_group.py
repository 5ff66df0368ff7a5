"""Groups of actors: what each of them asks of Ray."""

from __future__ import annotations

from typing import Any

from uld_ds.recipe import parse_recipe
from uld_ds.workers.actor_group import ActorGroup


def _of(tree: dict[str, Any], *, on_gpu: bool) -> ActorGroup:
    recipe = parse_recipe(tree)
    assert recipe.rollouts is not None
    return ActorGroup.of(recipe.rollouts.actors, recipe.cluster, what="rollouts", on_gpu=on_gpu)


def test_the_group_of_a_recipe(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["cluster"] |= {"labels": {"pool": "in(a, b)"}, "max_failures": 2, "accelerator_type": "H100"}
    tiny_recipe["rollouts"] = {"engine": "vllm", "actors": {"count": 3, "cpus": 2.5, "python": "/py"}}
    group = _of(tiny_recipe, on_gpu=True)
    assert group.count == 3
    assert group.options() == {
        "num_cpus": 2.5,
        "num_gpus": 1.0,
        "max_restarts": 2,
        "max_task_retries": 2,
        "scheduling_strategy": "DEFAULT",
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "2"}, "py_executable": "/py"},
        "label_selector": {"pool": "in(a,b)"},
        "accelerator_type": "H100",
    }
    tiny_recipe["rollouts"]["actors"] = {"gpus": 0.5}
    assert _of(tiny_recipe, on_gpu=False).options()["num_gpus"] == 0.5
    tiny_recipe["rollouts"]["actors"] = {}
    assert _of(tiny_recipe, on_gpu=False).options()["num_gpus"] == 0.0
