"""Several teachers in a recipe: what is refused, what is another run, and that a recipe of one is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, load_recipe, parse_recipe

GENERAL = {"name": "general", "model": "org/large", "weight": 0.7}
CODE = {"name": "code", "source": "stored", "path": "stores/code", "model": "org/coder", "weight": 0.3}


def tree(**changes: Any) -> dict[str, Any]:
    plain = {
        "run": {"name": "x"},
        "student": {"model": "s"},
        "data": {"train": {"source": "files", "path": "x"}},
        "training": {"steps": 1},
        "teachers": [GENERAL, CODE],
    }
    return {key: value for key, value in (plain | changes).items() if value is not None}


def refused(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(tree(**changes))
    return str(caught.value)


TWO_ONLINE = [GENERAL, GENERAL | {"name": "weak"}]
HELD_OUT = {name: {"source": "files", "path": name} for name in ("train", "eval")}
LIKELIHOOD = {"combine": "difference", "uld": 0.0, "likelihood": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"teacher": {"model": "t"}},
            "teacher: and teachers are both given; put the teacher into the list, or leave out one of both; a key of "
            "one in the list is set by its name: teachers.general.KEY",
        ),
        ({"teachers": None}, "recipe: teacher is missing: name one there, or several in teachers"),
        ({"teachers": [GENERAL, GENERAL]}, "recipe: teachers: 2 of them have the name 'general': each needs its own"),
        ({"teachers": [GENERAL | {"name": "teacher"}]}, "recipe: teachers: the name 'teacher' is that of the section"),
        (
            {"teachers": [GENERAL, {"name": "code"}]},
            "teachers.code: teacher.model is missing: source 'online' needs it",
        ),
        ({"teachers": [{"model": "t"}]}, "teachers.0.name: is missing; set it in the recipe or with --set"),
        (
            {"teachers": [GENERAL, CODE | {"name": "General"}]},
            "recipe: teachers: the names 'general' and 'General' differ in capitals alone: choose another",
        ),
        (
            {"teachers": [GENERAL, CODE | {"name": "uld"}]},
            "recipe: teachers: the name 'uld' is that of a metric or of a fact about a teacher: choose another",
        ),
        ({"teachers": [GENERAL | {"name": "a" * 65}]}, "teachers.0.name: String should have at most 64 characters"),
        ({"teachers": [GENERAL, "code"]}, "teachers.1: 'code' is not a section"),
        (
            {"teachers": [GENERAL | {"wieght": 1}]},
            "teachers.general.wieght: unknown key (value 1); did you mean teachers.general.weight?",
        ),
        (
            {"teachers": [GENERAL | {"weight": 0.0}]},
            "teachers.general.weight: Input should be greater than 0 (value 0.0)",
        ),
        ({"teachers": [GENERAL | {"name": "a/b"}]}, "teachers.0.name: String should match pattern"),
        ({"teachers": [GENERAL], "objective": {"combine": "route"}}, "recipe: objective.combine 'route' needs several"),
        ({"objective": {"combine": "route"}}, "recipe: objective.combine 'route' needs data.columns.teacher: the"),
        ({"objective": {"combine": "difference"}}, "recipe: objective.combine 'difference' is of likelihoods alone, "),
        (
            {"objective": LIKELIHOOD, "teachers": [GENERAL, CODE, CODE | {"name": "third"}]},
            "recipe: objective.combine 'difference' needs two teachers, the strong one first, and there are 3",
        ),
        (
            {
                "objective": LIKELIHOOD,
                "teachers": TWO_ONLINE,
                "rollouts": {"share": 0.5, "objective": {"uld": 1.0}},
                "data": HELD_OUT,
            },
            "recipe: objective.combine 'difference' is of likelihoods alone, and has no meaning with "
            "rollouts.objective.uld 1.0",
        ),
        (
            {"data": {"train": {"source": "files", "path": "x"}, "columns": {"teacher": "judge"}}},
            "recipe: data.columns.teacher 'judge' has no effect with objective.combine 'sum'",
        ),
        (
            {"rollouts": {"share": 0.5}, "data": HELD_OUT},
            "teachers.code.source: 'stored' cannot judge what the student has yet to write",
        ),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], said: str) -> None:
    assert refused(**changes).startswith(said)


def test_one_teacher_is_a_list_of_one_that_is_written_as_before() -> None:
    one = parse_recipe(tree(teachers=None, teacher={"model": "t", "max_length": 64}))
    (teacher,) = one.teachers
    assert (teacher.name, teacher.key, teacher.weight, teacher.model) == ("teacher", "teacher", 1.0, "t")
    # Whether a key was given decides what a store may say otherwise.
    assert teacher.model_fields_set == {"model", "max_length"}
    assert "teachers" not in one.model_dump(mode="json")
    assert parse_recipe(one.model_dump(mode="json")).digest() == one.digest()
    # The digest of this recipe in the release before there were lists.
    assert one.digest() == "d3ee9debbc81f93c49f883542cc4824a56ed8720a4b30376fe754b7d5892b27e"


def test_several_are_written_as_a_list() -> None:
    several = parse_recipe(tree())
    assert [teacher.key for teacher in several.teachers] == ["teachers.general", "teachers.code"]
    assert "teacher" not in several.model_dump(mode="json")
    assert parse_recipe(yaml.safe_load(several.to_yaml())) == several


def test_order_and_weights_make_another_run_and_memory_of_a_forward_does_not() -> None:
    def changed(*teachers: dict[str, Any]) -> Recipe:
        return parse_recipe(tree(teachers=list(teachers)))

    recipe = changed(GENERAL, CODE)
    other = changed(GENERAL | {"weight": 0.5}, CODE)
    assert recipe.first_difference(other) == "teachers[0].weight: 0.7 -> 0.5"
    assert other.digest() != recipe.digest()
    assert str(recipe.first_difference(changed(CODE, GENERAL))).startswith("teachers[0].model: 'org/large' -> ")
    assert changed(CODE, GENERAL).digest() != recipe.digest()
    smaller = changed(GENERAL | {"max_tokens_per_forward": 7}, CODE)
    assert recipe.first_difference(smaller) is None
    assert smaller.digest() == recipe.digest()


def test_a_verb_that_needs_one_teacher_takes_the_only_one_or_the_one_that_is_named() -> None:
    recipe = parse_recipe(tree())
    assert recipe.teacher_named("code").path == "stores/code"
    with pytest.raises(UserError) as caught:
        recipe.teacher_named()
    assert (
        str(caught.value) == "--teacher: is missing: the recipe has 2 teachers; name one with --teacher: general, code"
    )
    with pytest.raises(UserError, match="'x' is no teacher of the recipe; name one with --teacher: general, code"):
        recipe.teacher_named("x")
    alone = recipe.alone_with("code")
    assert (alone.teacher_named().path, alone.teachers[0].key) == ("stores/code", "teacher")
    assert parse_recipe(alone.model_dump(mode="json")) == alone


def test_a_key_of_one_of_several_is_set_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree()))
    changes = ["teachers.code.path=s3://b/#1", "teachers.general.precision=fp32", "teachers.code.path=other"]
    variables = {"ULD_DS__TEACHERS__GENERAL__MAX_LENGTH": "99"}
    general, code = load_recipe(file, changes, environment=variables).teachers
    assert (general.precision, general.max_length, general.weight) == ("fp32", 99, 0.7)
    assert code.path == "other"
    with pytest.raises(UserError) as caught:
        load_recipe(file, ["teachers.x.path=y"], environment={})
    assert str(caught.value) == "teachers.x: is no teacher of the recipe; set the keys of one of general, code"


def test_what_is_set_by_name_may_refer_to_other_keys_and_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    # Escaped, it is no reference; it must not become one when another key is set.
    written = tree(
        run={"name": "x", "storage": "s3://b"}, teachers=[GENERAL | {"prompt_template": "\\${a} {prompt}"}, CODE]
    )
    file.write_text(yaml.safe_dump(written))
    changes = ["teachers.code.path=${run.storage}/${run.name}", "teachers.general.precision=fp32"]
    general, code = load_recipe(file, changes, environment={}).teachers
    assert code.path == "s3://b/x"
    assert (general.prompt_template, general.precision) == ("${a} {prompt}", "fp32")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("teachers.code=5", "teachers.code: 5 is not a section; set a key of it: teachers.code.KEY"),
        ("teachers.code.path=${run.x}", "teachers[1].path: "),
        ("teacher.precision=fp32", "teacher: and teachers are both given; "),
        ("teachers.code.weight=.nan", "teachers.code.weight: Input should be "),
    ],
)
def test_a_key_that_is_set_wrongly_is_named(tmp_path: Path, change: str, said: str) -> None:
    (file := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree()))
    with pytest.raises(UserError) as caught:
        load_recipe(file, [change], environment={})
    assert str(caught.value).startswith(said)


def test_an_entry_that_is_no_section_is_not_lost_when_another_is_set(tmp_path: Path) -> None:
    (file := tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree(teachers=[GENERAL, "code"])))
    with pytest.raises(UserError, match=r"teachers\.1: 'code' is not a section"):
        load_recipe(file, ["teachers.general.weight=2"], environment={})


def test_the_difference_may_be_of_own_answers_alone() -> None:
    objective = LIKELIHOOD | {"likelihood": 0.0, "ce": 1.0}
    rollouts = {"share": 0.5, "objective": {"likelihood": 1.0}}
    recipe = parse_recipe(tree(objective=objective, teachers=TWO_ONLINE, rollouts=rollouts, data=HELD_OUT))
    assert recipe.taught.likelihood == 1.0
