"""A served teacher in a recipe: what it needs, what is refused, and that nothing of it moves other runs' digests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.recipe_trees import message, refused, tree_with
from uld_ds.recipe import parse_recipe

SERVER: dict[str, Any] = {"url": "http://teacher:8000", "api": "vllm"}
SERVED = {"teacher__source": "served", "teacher__server": SERVER}


def test_defaults_and_the_place_that_is_asked() -> None:
    server = parse_recipe(tree_with(**SERVED)).teacher_named().server
    assert server is not None
    assert (server.top, server.concurrency, server.tokens_in_flight) == (64, 16, 16384)
    assert (server.name, server.timeout, server.patience, server.base) == (None, 120, 600, "http://teacher:8000")
    for url in ("https://host/engine/", "https://host/engine/v1", "https://host/engine/v1/"):
        changed = parse_recipe(tree_with(**SERVED | {"teacher__server": SERVER | {"url": url}}))
        assert changed.teacher_named().server.base == "https://host/engine"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher__model": None}, "teacher.model is missing: source 'served' needs its tokenizer and chat template"),
        ({"teacher__source": "online"}, "teacher.server: has no effect with source 'online'"),
        ({"teacher__server": SERVER | {"api": "llama.cpp"}}, "teacher.server.api: 'llama.cpp' is not known; choose"),
        ({"teacher__server": SERVER | {"url": "teacher:8000"}}, "teacher.server.url: 'teacher:8000' is no http or"),
        ({"teacher__server": SERVER | {"url": "ftp://teacher"}}, "teacher.server.url: 'ftp://teacher' is no http or"),
        ({"teacher__server": SERVER | {"url": "http://a:99999"}}, "teacher.server.url: it is no URL"),
        ({"teacher__server": SERVER | {"url": "http://a/?key=x"}}, "teacher.server.url: it has a query or a fragment"),
        ({"teacher__precision": "fp32"}, "teacher.precision: 'fp32' has no effect with source 'served'; leave it out"),
        ({"teacher__sharding": "none"}, "teacher.sharding: 'none' has no effect with source 'served'"),
        ({"teacher__deepspeed": "x.json"}, "teacher.deepspeed: 'x.json' has no effect with source 'served'"),
        ({"teacher__packing": False}, "teacher.packing: False has no effect with source 'served'"),
        ({"teacher__max_tokens_per_forward": 512}, "server.tokens_in_flight bounds what is under way"),
        ({"objective__teacher_temperature": 2.0}, "objective.teacher_temperature: 2 needs every logit of the teacher"),
        (
            {"teacher__server": SERVER | {"top": 32}, "objective__hybrid": 1.0},
            "teacher.server.top: 32 is less than the objective.top_ids 64 that hybrid look at; raise it to 64 (vLLM: "
            "start it with --max-logprobs 64), or lower objective.top_ids to 32",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], said: str) -> None:
    assert said in refused(**SERVED | changes)


def test_an_engine_must_be_named() -> None:
    assert "teacher.server is missing: source 'served' needs the url and the api" in refused(teacher__source="served")


def test_what_own_answers_look_at_counts_too() -> None:
    changes: dict[str, Any] = {
        "teacher__server": SERVER | {"top": 32},
        "data__eval": {"source": "files", "path": "e.jsonl"},
        "rollouts": {"share": 0.5, "every": 1, "objective": {"projection": 1.0}},
        "training__batch_size": 8,
        "training__micro_batch_size": 1,
        "cluster": {"workers": 1},
    }
    assert "teacher.server.top: 32 is less than the objective.top_ids 64" in refused(**SERVED | changes)


def test_a_password_is_refused_and_not_shown() -> None:
    for url in ("http://user:hunter22@teacher:8000", "http://hunter22@teacher:8000", "x://:hunter22@teacher"):
        said = refused(**SERVED | {"teacher__server": SERVER | {"url": url}})
        assert "ULD_DS_TEACHER_TOKEN" in said and "hunter22" not in said


def test_one_of_several_is_called_by_its_name() -> None:
    general, code = ({"name": name, "model": name} for name in ("general", "code"))
    tree = tree_with(teacher=None, teachers=[general, code | {"source": "served", "server": SERVER, "packing": False}])
    assert message(parse_recipe, tree).startswith("teachers.code.packing: False has no effect")
    del tree["teachers"][1]["packing"]
    assert parse_recipe(tree).teacher_named("code").source == "served"


def test_digests() -> None:
    online, served = parse_recipe(tree_with()), parse_recipe(tree_with(**SERVED))
    assert online.digest() != served.digest()
    assert parse_recipe(online.model_dump(mode="json")).digest() == online.digest()
    # Of the release before there were served teachers.
    several = parse_recipe(tree_with(teacher=None, teachers=[{"name": n, "model": n} for n in ("general", "code")]))
    assert several.digest() == "b6a5a5dc00c6d01f84ba73272e82b744274eced50bad66d027b8776c3c8080b1"
    # Where the server is, and how it is asked, is no part of what a run is; what it is asked is.
    for change in ({"url": "https://other"}, {"concurrency": 1}, {"timeout": 1.0}, {"tokens_in_flight": 9}):
        other = parse_recipe(tree_with(**SERVED | {"teacher__server": SERVER | change}))
        assert other.digest() == served.digest() and served.first_difference(other) is None
    for change in ({"top": 32}, {"name": "x"}, {"api": "sglang"}):
        other = parse_recipe(tree_with(**SERVED | {"teacher__server": SERVER | change}))
        assert other.digest() != served.digest() and served.first_difference(other) is not None
