"""Text of ``--set`` and the environment is text, for keys that take text; numbers are what they seem."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers.recipe_trees import TREE, message
from uld_ds.recipe import load_recipe
from uld_ds.recipe.renamed_keys import RENAMED_KEYS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TREE))
    return path


def by_both_ways(file: Path, key: str, value: str) -> Any:
    """A key's value after ``--set`` and after the environment, which are the same."""
    name = "ULD_DS__" + key.replace(".", "__").upper()
    recipes = [load_recipe(file, [f"{key}={value}"], environment={}), load_recipe(file, environment={name: value})]
    found = [reduce(lambda at, name: at[name] if isinstance(at, dict) else getattr(at, name), key.split("."), recipe)
             for recipe in recipes]  # fmt: skip
    assert found[0] == found[1]
    return found[0]


# What YAML 1.1 makes something else of, or cuts.
NOT_TEXT_IN_YAML = [
    *(
        "# Role: tutor",
        "a # b",
        "{prompt}",
        "{a: 1}",
        "[x]",
        "[1,",
        "- x",
        "x: y",
        "? x",
        "&a x",
        "*a",
        "!x",
        "%x",
        "@x",
    ),
    *("`x`", "> x", "| x", "010", "8", "1e-4", "12:30:00", "0x10", "1_000", ".5", "yes", "no", "on", "off", "true"),
    *("False", "2024-01-01", ".inf", "=", "<<", " x ", "x\ny: z", "'", '"a" and "b"', "it's", "'s'x", "---", "..."),
]


@pytest.mark.parametrize("text", NOT_TEXT_IN_YAML)
def test_keys_of_text_take_text(file: Path, text: str) -> None:
    assert by_both_ways(file, "student.system_prompt", text) == text
    assert by_both_ways(file, "data.columns.answer", text) == text
    assert by_both_ways(file, "cluster.labels.pool", text) == text
    # Keys that take a list or a section besides read one as that.
    if not text.startswith(("[", "- ")):
        assert by_both_ways(file, "data.train.path", text) == text
    if text not in ("{prompt}", "{a: 1}", "x: y", "? x", "x\ny: z"):
        assert by_both_ways(file, "student.tokenizer", text) == text


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="$"), min_size=1).filter(lambda x: x != "???"))
@example("null")
@example("~")
def test_any_text(file: Path, text: str) -> None:
    quoted = len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] and text.strip()[0] in "'\""
    if not quoted:
        assert load_recipe(file, [f"data.columns.answer={text}"], environment={}).data.columns.answer == text


def test_a_prompt_template_needs_no_quotes(file: Path) -> None:
    assert by_both_ways(file, "student.prompt_template", "{prompt}") == "{prompt}"
    assert by_both_ways(file, "teacher.prompt_template", "# Task: {prompt} ") == "# Task: {prompt} "


def test_values_in_quotes_are_what_is_in_them(file: Path) -> None:
    assert by_both_ways(file, "student.prompt_template", r'"Q: {prompt}\nA: "') == "Q: {prompt}\nA: "
    assert by_both_ways(file, "student.system_prompt", "'null'") == "null"
    assert by_both_ways(file, "student.system_prompt", '""') == ""


def test_nothing_is_null_where_the_key_takes_that(file: Path) -> None:
    for nothing in ("null", "~", ""):
        assert by_both_ways(file, "student.system_prompt", nothing) is None
    assert by_both_ways(file, "run.name", "null") == "null"
    # An unset variable of a shell is no text.
    assert message(load_recipe, file, ["run.storage="]) == (
        "run.storage: Input should be a valid string (value None); put text in quotes: without them YAML reads nothing"
    )


def test_lists_and_sections_are_yaml_where_the_key_takes_them(file: Path) -> None:
    assert by_both_ways(file, "data.train.path", "[a.json, b.json]") == ["a.json", "b.json"]
    assert by_both_ways(file, "student.tokenizer", "{train: bpe, vocab_size: 400}").vocab_size == 400
    assert by_both_ways(file, "evaluation.suites", "[a, 'no']") == ["a", "no"]
    assert by_both_ways(file, "cluster.labels", "{pool: 'no'}") == {"pool": "no"}
    assert message(load_recipe, file, ["evaluation.suites=[no]"]) == (
        "evaluation.suites.0: Input should be a valid string (value False); put text in quotes: without them YAML "
        "reads true or false"
    )


def test_keys_by_their_former_names(file: Path) -> None:
    for old, value in {"objective.normalise": "sample", "teacher.remember": "no"}.items():
        new = RENAMED_KEYS[old].rpartition(".")[2]
        section = getattr(load_recipe(file, [f"{old}={value}"], environment={}), old.partition(".")[0])
        assert getattr(section, new) == {"sample": "sample", "no": False}[value]

    assert message(load_recipe, file, ["objective.normalise=no"]).startswith("objective.normalize: 'no' is not known; ")


def test_references_are_still_references(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLE", "# tutor")
    assert by_both_ways(file, "student.system_prompt", "${oc.env:ROLE}: {prompt}") == "# tutor: {prompt}"
    assert by_both_ways(file, "student.system_prompt", r"\${x}") == "${x}"


# ---- numbers


@pytest.mark.parametrize(
    ("value", "number"), [("8", 8), ("1_000", 1000), ("0x10", 16), ("0b11", 3), ("0", 0), ("+5", 5)]
)
def test_numbers_as_yaml_has_them(file: Path, value: str, number: int) -> None:
    assert by_both_ways(file, "run.seed", value) == number


@pytest.mark.parametrize("value", ["1e-4", "1E-4", ".0001", "0.0001", "1.0e-4"])
def test_a_recipes_floats_need_no_dot(file: Path, value: str) -> None:
    """PyYAML alone takes the first two for text."""
    assert by_both_ways(file, "training.optimizer.learning_rate", value) == 1e-4
    file.write_text(file.read_text().replace("steps: 3", f"steps: 3\n  optimizer: {{learning_rate: {value}}}"))
    assert load_recipe(file, environment={}).training.optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("written", "number"), [("010", 8), ("-010", -8), ("12:30:00", 45000), ("1:30", 90), ("1:30.5", 90.5)]
)
@pytest.mark.parametrize("key", ["training.steps", "student.from_config.hidden_size"])
def test_numbers_that_are_others_in_yaml_1_1_are_refused(file: Path, key: str, written: str, number: float) -> None:
    expected = (
        f'{key}: {written} is the number {number} in YAML 1.1; write {number}, or "{written}" in quotes if it is text'
    )
    assert message(load_recipe, file, [f"{key}={written}"], environment={}) == expected
    tree = yaml.safe_load(file.read_text())
    reduce(lambda at, name: at.setdefault(name, {}), key.split(".")[:-1], tree)[key.split(".")[-1]] = 111222333
    file.write_text(yaml.safe_dump(tree).replace("111222333", written))
    assert message(load_recipe, file, environment={}) == expected
    file.write_text(file.read_text().replace(written, f"'{written}'"))
    assert "YAML 1.1" not in message(load_recipe, file, environment={})


# ---- a recipe's file is YAML: what is no text there is refused with the way to write it


@pytest.mark.parametrize(
    ("written", "value", "kind"),
    [
        ("no", "False", "true or false"),
        ("on", "True", "true or false"),
        ("1e-4", "0.0001", "a number"),
        ("8", "8", "a number"),
        ("{prompt}", "{'prompt': None}", "a mapping"),
        ("[x]", "['x']", "a list"),
    ],
)
def test_what_is_no_text_in_a_file(file: Path, written: str, value: str, kind: str) -> None:
    tree = yaml.safe_load(file.read_text())
    tree["student"]["system_prompt"] = "PLACE"
    file.write_text(yaml.safe_dump(tree).replace("PLACE", written))
    assert message(load_recipe, file, environment={}) == (
        f"student.system_prompt: Input should be a valid string (value {value}); put text in quotes: without them YAML "
        f"reads {kind}"
    )
    file.write_text(file.read_text().replace(f"system_prompt: {written}", f"system_prompt: '{written}'"))
    assert load_recipe(file, environment={}).student.system_prompt == written


def test_dates_in_a_file_are_text(file: Path) -> None:
    file.write_text(file.read_text().replace("student:", "student:\n  system_prompt: 2024-01-01"))
    assert load_recipe(file, environment={}).student.system_prompt == "2024-01-01"


def test_an_anchor_inside_itself_ends(file: Path) -> None:
    file.write_text(file.read_text() + "\nstore: &a {x: *a}\n")
    assert "\n" not in message(load_recipe, file, environment={})
