"""Old names of a recipe's keys: taken wherever a recipe comes from, told once, and without a trace in what compares."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.recipe_trees import TREE, message, tree_with
from uld_ds.data.examples import ExampleReader
from uld_ds.data.prepare import Preparer
from uld_ds.recipe import Recipe, load_recipe, parse_recipe
from uld_ds.recipe.renamed_keys import RENAMED_KEYS, RENAMED_VALUES, _notice, with_current_names, with_former_names
from uld_ds.recipe.validation_errors import known_keys
from uld_ds.teachers.cached import cache_identity
from uld_ds.teachers.store.manifest import StoreIdentity

OLD: dict[str, Any] = tree_with(
    teacher__remember=False,
    student__lora={"rank": 4, "quantise": "nf4"},
    objective={"likelihood": 0.5, "likelihood_divergence": "kl", "projection": 0.3, "top_ids": 16}
    | {"normalise": "sample"},
)
NEW: dict[str, Any] = tree_with(
    teacher__cache=False,
    student__lora={"rank": 4, "quantize": "nf4"},
    objective={"likelihood": 0.5, "likelihood_divergence": "forward_kl", "projection": 0.3, "top_ids": 16}
    | {"normalize": "sample"},
)


@pytest.fixture(autouse=True)
def nothing_told_yet() -> Iterator[None]:
    _notice.cache_clear()
    yield
    _notice.cache_clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_old_names_make_the_same_recipe_and_are_told_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(yaml.safe_dump(OLD))
    loaded = load_recipe(file, ["objective.normalize=sample"], environment={"ULD_DS__TEACHER__REMEMBER": "false"})
    assert loaded == parse_recipe(OLD) == parse_recipe(NEW)
    assert (loaded.teacher.cache, loaded.objective.normalize) == (False, "sample")
    assert (loaded.student.quantize, loaded.objective.likelihood_divergence) == ("nf4", "forward_kl")
    assert sorted(caplog.messages) == [
        "objective.likelihood_divergence: kl is called forward_kl now",
        "objective.normalise is called objective.normalize now",
        "student.lora.quantise is called student.lora.quantize now",
        "teacher.remember is called teacher.cache now",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_new_names_are_not_worth_a_word(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(parse_recipe(NEW).to_yaml())
    assert load_recipe(file, ["teacher.cache=true"], environment={}).teacher.cache is True
    assert caplog.messages == []


@pytest.mark.parametrize("in_file", ["teacher.remember", "teacher.cache"])
@pytest.mark.parametrize("over_it", ["teacher.remember", "teacher.cache"])
def test_an_override_by_either_name_wins_over_the_other(file: Path, in_file: str, over_it: str) -> None:
    file.write_text(yaml.safe_dump(tree_with(**{in_file.replace(".", "__"): True})))
    variable = f"ULD_DS__{over_it.replace('.', '__').upper()}"
    assert load_recipe(file, [f"{over_it}=false"], environment={}).teacher.cache is False
    assert load_recipe(file, environment={variable: "false"}).teacher.cache is False
    assert load_recipe(file, [f"{in_file}=true"], environment={variable: "false"}).teacher.cache is True
    # The last of several --set counts, as of one key set twice.
    assert load_recipe(file, [f"{in_file}=true", f"{over_it}=false"], environment={}).teacher.cache is False


def test_both_names_in_one_layer(file: Path) -> None:
    problem = "teacher.cache: False contradicts teacher.remember True, its former name; leave teacher.remember out"
    both = tree_with(teacher__remember=True, teacher__cache=False)
    file.write_text(yaml.safe_dump(both))
    assert message(load_recipe, file, environment={}) == problem
    assert message(parse_recipe, both) == problem
    file.write_text(yaml.safe_dump(TREE))
    variables = {"ULD_DS__TEACHER__REMEMBER": "false", "ULD_DS__TEACHER__CACHE": "true"}
    assert message(load_recipe, file, environment=variables).startswith("teacher.cache: True contradicts teacher.rem")
    agreeing = tree_with(teacher__remember=False, teacher__cache=False)
    assert parse_recipe(agreeing).teacher.cache is False


def test_references_survive(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOW", "sample")
    monkeypatch.setenv("WHICH", "kl")
    divergence = {"likelihood": 1.0, "likelihood_divergence": "${oc.env:WHICH}", "normalise": "${oc.env:HOW}"}
    file.write_text(yaml.safe_dump(tree_with(objective=divergence, teacher__system_prompt="\\${teacher.remember}")))
    loaded = load_recipe(file, environment={})
    assert (loaded.objective.normalize, loaded.objective.likelihood_divergence) == ("sample", "forward_kl")
    assert loaded.teacher.system_prompt == "${teacher.remember}"


def test_a_bad_value_is_named_by_the_new_name() -> None:
    assert message(parse_recipe, tree_with(teacher__remember="no")) == (
        "teacher.cache: Input should be a valid boolean (value 'no'); give a value of that kind"
    )
    assert message(parse_recipe, tree_with(teacher=[1])) == "teacher: [1] is not a section; write its keys below it"


def test_the_table_is_about_keys_that_are_there() -> None:
    known = set(known_keys(Recipe))
    for old, new in RENAMED_KEYS.items():
        assert (new in known, old in known) == (True, False)
        assert old.rpartition(".")[0] == new.rpartition(".")[0], "a key stays in its section"
    assert RENAMED_VALUES.keys() <= known


# ---- what was made under the old names


def test_there_and_back() -> None:
    assert with_current_names(OLD) == NEW
    assert with_former_names(NEW) == OLD
    resolved = parse_recipe(NEW).model_dump(mode="json")
    assert with_current_names(with_former_names(resolved)) == resolved
    assert with_former_names({"student": {"lora": {"quantize": None}}}) == {"student": {"lora": {"quantise": None}}}


def test_an_old_run_is_the_same_run(file: Path) -> None:
    """What the folder of a run from before the change holds: every key, by the names of then."""
    mine = parse_recipe(NEW)
    file.write_text(yaml.safe_dump(with_former_names(mine.model_dump(mode="json"))))
    text = file.read_text()
    assert "remember: false" in text and "quantise: nf4" in text and "divergence: kl" in text and "cache" not in text
    stored = load_recipe(file, environment={})
    assert stored.first_difference(mine) is None
    assert mine.first_difference(stored) is None
    assert stored.digest() == mine.digest()


# Of a release from before the change, for OLD with teacher.remember true, and for TREE.
DIGESTS = {
    "4da1d1cd0b9a72945b821af526e679e13a0a6ea88083133c4e8e76f87ce33377": (
        OLD,
        "30e71fd159cd661b882f22e009466b0b50054a5bf0f729e4987d6a3e532dd952",
    ),
    "d171ec9768dc2e0a5a5b30c8f48bbcf326ed1914c511e5ba4e95bde72c5ca838": (
        TREE,
        "a1bc929a2b26e4e508d6db0a5d1d92115fff05c6831163b6adda149e359b1b8c",
    ),
}


@pytest.mark.parametrize("digest", DIGESTS)
def test_digests_are_those_of_before(digest: str) -> None:
    tree, of_cache = DIGESTS[digest]
    recipe = parse_recipe({**tree, "teacher": {**tree["teacher"], "remember": True}})
    assert recipe.digest() == digest
    assert cache_identity(recipe, recipe.teacher_named(), "rows-1") == of_cache


def test_prepared_data_and_caches_do_not_know_the_renamed_keys() -> None:
    """No name or value of theirs goes into what decides whether something is made again."""

    def identities(tree: dict[str, Any]) -> str:
        sides = {name: tree[name] | {"prompt_template": "{prompt}"} for name in ("teacher", "student")}
        recipe = parse_recipe(tree | sides)
        rows = Preparer(recipe, zoo.characters(), zoo.plain_bytes())._work.identity()
        reader = ExampleReader(recipe.data).identity()
        return json.dumps([rows, reader, cache_identity(recipe, recipe.teacher_named(), "rows-1")], sort_keys=True)

    plain = identities(OLD)
    assert plain == identities(NEW)
    changed = {
        "teacher__cache": True,
        "student__lora": {"rank": 4},
        "objective": NEW["objective"] | {"normalize": "token", "likelihood_divergence": "reverse_kl"},
    }
    assert plain == identities(tree_with(**changed))
    names = {name.rpartition(".")[2] for pair in RENAMED_KEYS.items() for name in pair}
    assert not names & StoreIdentity.model_fields.keys()
