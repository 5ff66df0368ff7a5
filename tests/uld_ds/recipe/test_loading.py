"""The recipe: what is accepted, what is refused and with which words, and what makes two recipes the same run."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import uld_ds
from tests.helpers.recipe_trees import TREE, message, refused, tree_with
from uld_ds.recipe import CodecSettings, Recipe, load_recipe, parse_recipe
from uld_ds.recipe.validation_errors import known_keys
from uld_ds.spectrum.precision import BOUNDS, Precision


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TREE))
    return path


# ---- layers


def test_layers_override_each_other_in_order(file: Path) -> None:
    recipe = load_recipe(file, environment={})
    assert (recipe.training.steps, recipe.training.batch_size) == (3, 8)
    recipe = load_recipe(file, environment={"ULD_DS__TRAINING__STEPS": "5", "ULD_DS__TRAINING__BATCH_SIZE": "4"})
    assert (recipe.training.steps, recipe.training.batch_size) == (5, 4)
    recipe = load_recipe(file, ["training.steps=6", "training.steps=7"], environment={"ULD_DS__TRAINING__STEPS": "5"})
    assert recipe.training.steps == 7


def test_environment_of_the_process_is_the_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULD_DS__STUDENT__FROM_CONFIG__HIDDEN_SIZE", "32")
    monkeypatch.setenv("ULD_DS__STUDENT__FROM_CONFIG__MODEL_TYPE", "llama")
    monkeypatch.setenv("ULD_DS__STUDENT__MODEL", "null")
    monkeypatch.setenv("ULD_DS__STUDENT__TOKENIZER", "org/tokenizer")
    assert load_recipe(file).student.from_config == {"model_type": "llama", "hidden_size": 32}


def test_override_values_are_yaml(file: Path) -> None:
    overrides = ["training.steps=null", "training.epochs=1.5", "data.train.path=[a.json, b.json]"]
    recipe = load_recipe(file, [*overrides, "training.optimizer.learning_rate=1e-5"], environment={})
    assert (recipe.training.epochs, recipe.data.train.path) == (1.5, ["a.json", "b.json"])
    assert recipe.training.optimizer.learning_rate == 1e-5


def test_references_to_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "from-env")
    monkeypatch.setenv("STEPS", "12")
    overrides = ["run.name=${oc.env:RUN}", "run.storage=${oc.env:ULD_TEST_NOWHERE,/else}"]
    recipe = load_recipe(file, [*overrides, "training.steps=${oc.decode:${oc.env:STEPS}}"], environment={})
    assert (recipe.run.name, recipe.run.storage, recipe.training.steps) == ("from-env", "/else", 12)
    assert message(load_recipe, file, ["run.name=${oc.env:ULD_TEST_NOWHERE}"]) == (
        "run.name: KeyError raised while resolving interpolation: \"Environment variable 'ULD_TEST_NOWHERE' not "
        'found"; correct the reference, or set what it names'
    )


@pytest.mark.parametrize("override", ["training.steps", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_malformed_override(file: Path, override: str) -> None:
    assert message(load_recipe, file, [override]) == (
        f"--set: {override!r} is not KEY=VALUE; write e.g. --set training.steps=100"
    )


def test_override_that_is_not_yaml_is_blamed_on_its_origin(file: Path) -> None:
    assert message(load_recipe, file, ["training.steps=[1,"]).startswith(
        "--set: '[1,' for training.steps is not YAML ("
    )
    assert message(load_recipe, file, ["run.name=${x"]).startswith("--set: '${x' for run.name is not YAML (")
    environment = {"ULD_DS__TRAINING__STEPS": "[1,"}
    text = message(load_recipe, file, environment=environment)
    assert text.startswith("ULD_DS__TRAINING__STEPS: '[1,' for training.steps is not YAML (") and text.endswith(
        "; quote it"
    )
    assert message(load_recipe, file, environment={"ULD_DS__": "1"}) == (
        "ULD_DS__: names no key of a recipe; write e.g. ULD_DS__TRAINING__STEPS"
    )


# ---- files


def test_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        assert message(load_recipe, path) == f"recipe: no file '{path}'; give the path of a recipe's YAML file"


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"a: [1,\n", "recipe: '{file}' is not YAML (while parsing a flow node"),
        (b"run: \tx: y", "recipe: '{file}' is not YAML (mapping values are not allowed"),
        (b"run: 1\nrun: 2\n", "recipe: '{file}' is not YAML (while constructing a mapping"),
        (b"\xff\xfe\x00a", "recipe: '{file}' is not YAML ('utf-8' codec can't decode"),
        (b"- a\n- b\n", "recipe: '{file}' holds a list; a recipe is a mapping of sections"),
        (b"", "run: is missing (and 3 more); set it in the recipe or with --set"),
        (b"7", "recipe: '{file}' is not YAML (Invalid loaded object type: int)"),
        (b"hello", "hello: unknown key (value None) (and 4 more); remove it; known here: run, teacher, teachers, "),
        (b"1: 2", "1: unknown key (value 2) (and 4 more); "),
    ],
)
def test_file_that_is_no_recipe(tmp_path: Path, content: bytes, start: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    assert message(load_recipe, file).startswith(start.format(file=file))


# ---- keys


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training__stepps": 3}, "training.stepps: unknown key (value 3); did you mean training.steps?"),
        ({"stps": 3}, "stps: unknown key (value 3); did you mean training.steps?"),
        ({"teacher__model_": "x"}, "teacher.model_: unknown key (value 'x'); did you mean teacher.model?"),
        (
            {"student__tokenizer": {"train": "bpe", "vocab": 9}},
            "student.tokenizer.vocab: unknown key (value 9); did you mean student.tokenizer.vocab_size?",
        ),
        ({"data__train__pth": "x"}, "data.train.pth: unknown key (value 'x'); did you mean data.train.path?"),
        (
            {"data__train__function": "a:b"},
            "data.train.function: unknown key (value 'a:b'); remove it; it belongs to another kind of data.train",
        ),
        (
            {"data__columns__zzzzzz": 1},
            "data.columns.zzzzzz: unknown key (value 1); remove it; known here: prompt, answer, messages, "
            "tools, template_arguments, teacher",
        ),
    ],
)
def test_unknown_key_names_the_nearest(changes: dict[str, Any], expected: str) -> None:
    assert refused(**changes) == expected


@pytest.mark.parametrize("tag", ["files", "hub", "generator", "str"])
def test_a_key_called_like_a_tag_of_pydantic_is_still_named(tag: str) -> None:
    assert refused(**{f"data__train__{tag}": 1}).startswith(f"data.train.{tag}: unknown key (value 1); ")
    assert refused(**{f"data__columns__{tag}": 1}).startswith(f"data.columns.{tag}: unknown key (value 1); ")
    assert refused(**{"student__tokenizer": {"train": "bpe", tag: 1}}).startswith(f"student.tokenizer.{tag}: ")


def test_unknown_key_is_named_before_what_is_missing_because_of_it() -> None:
    tree = tree_with(training__steps=None, training__setps=3)
    assert message(parse_recipe, tree) == "training.setps: unknown key (value 3); did you mean training.steps?"
    tree = tree_with(run__name=None, run__nmae="x")
    assert message(parse_recipe, tree) == "run.nmae: unknown key (value 'x') (and 1 more); did you mean run.name?"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": None}, "run: is missing; set it in the recipe or with --set"),
        ({"run": 3}, "run: 3 is not a section; write its keys below it"),
        ({"data__train__source": None}, "data.train.source: is missing; set it in the recipe or with --set"),
        ({"data__train": {"source": "hub"}}, "data.train.dataset: is missing; set it in the recipe or with --set"),
        (
            {"data__train__source": "file"},
            "data.train.source: 'file' is not known; choose one of 'files', 'hub', 'generator'",
        ),
        ({"objective__method": "fast"}, "objective.method: 'fast' is not known; choose 'linear' or 'exact'"),
        (
            {"student__tokenizer": {"train": "wp"}},
            "student.tokenizer.train: 'wp' is not known; choose 'unigram' or 'bpe'",
        ),
    ],
)
def test_missing_and_unknown_choices(changes: dict[str, Any], expected: str) -> None:
    assert refused(**changes) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training__steps": "3"}, "training.steps: Input should be a valid integer (value '3')"),
        ({"training__steps": 3.0}, "training.steps: Input should be a valid integer (value 3.0)"),
        ({"training__steps": True}, "training.steps: Input should be a valid integer (value True)"),
        ({"training__steps": 0}, "training.steps: Input should be greater than or equal to 1 (value 0)"),
        ({"run__name": 12}, "run.name: Input should be a valid string (value 12)"),
        ({"student__gradient_checkpointing": "yes"}, "student.gradient_checkpointing: Input should be a valid boolean"),
        ({"data__train__path": [1, "a"]}, "data.train.path.0: Input should be a valid string (value 1)"),
        ({"student__tokenizer": 3}, "student.tokenizer: Input should be a valid string (value 3)"),
        ({"objective__uld": float("nan")}, "objective.uld: Input should be a finite number (value nan)"),
        ({"training__optimizer": {"betas": [0.9, 1.0]}}, "training.optimizer.betas.1: Input should be less than 1"),
        ({"training__optimizer": {"betas": [0.9, "0.99"]}}, "training.optimizer.betas.1: Input should be a valid num"),
        ({"teacher__model": ""}, "teacher.model: String should have at least 1 character"),
        ({"cluster": {"dashboard_port": 70000}}, "cluster.dashboard_port: Input should be less than or equal to 65535"),
    ],
)
def test_types_are_strict(changes: dict[str, Any], expected: str) -> None:
    text = refused(**changes)
    fix = (
        "put text in quotes: without them YAML reads a number"
        if "string (" in expected
        else "give a value of that kind"
    )
    assert text.startswith(expected) and text.endswith(f"; {fix}")


def test_a_long_value_is_shown_in_part() -> None:
    assert len(refused(training__steps="x" * 9999)) < 250


# ---- keys that must fit each other


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"training__batch_size": 8, "training__micro_batch_size": 2, "cluster__workers": 3},
            "recipe: training.batch_size 8 is not a multiple of training.micro_batch_size 2 x cluster.workers 3 = 6",
        ),
        ({"training__epochs": 1.0}, "training: exactly one of training.epochs and training.steps must be set"),
        ({"training__steps": None}, "training: exactly one of training.epochs and training.steps must be set"),
        (
            {"student__keep_layers": [2, 1]},
            "student: student.keep_layers [2, 1] must name each layer once, in order",
        ),
        (
            {"student": {"from_config": {"model_type": "llama"}, "tokenizer": "t", "keep_layers": [0]}},
            "student: student.keep_layers needs student.model: a new model has the layers it is given",
        ),
        (
            {"student__lora": {}, "student__freeze": ["lm_head.*"]},
            "student: student.freeze has no effect with student.lora, which freezes all but its adapters",
        ),
        (
            {"teacher__model": None, "teacher__cache": True},
            "teacher: teacher.model is missing: source 'online' needs it",
        ),
        (
            {"teacher": {"source": "stored"}},
            "teacher: teacher.path is missing: source 'stored' needs the folder or URL of a spectrum store",
        ),
        (
            {"teacher__sharding": "none", "teacher__deepspeed": "teacher_zero3_cpu.json"},
            "teacher: teacher.deepspeed has no effect with teacher.sharding 'none'",
        ),
        (
            {"student__from_config": {"model_type": "llama"}},
            "student: exactly one of student.model and student.from_config must be set",
        ),
        ({"student__model": None}, "student: exactly one of student.model and student.from_config must be set"),
        (
            {"student": {"from_config": {"model_type": "llama"}}},
            "student: student.from_config makes a new model: set student.tokenizer as well",
        ),
        (
            {"student": {"from_config": {"hidden_size": 8}, "tokenizer": "x"}},
            "student: student.from_config needs model_type, e.g. llama",
        ),
        (
            {"student": {"from_config": {"model_type": "llama"}, "tokenizer": "x", "gguf_file": "y"}},
            "student: student.gguf_file needs student.model, not student.from_config",
        ),
        (
            {"student": {"from_config": {"model_type": "l", "max_position_embeddings": 512}, "tokenizer": "x"}},
            "student: student.max_length 1024 is more than student.from_config.max_position_embeddings 512",
        ),
        (
            {"teacher__prompt_template": "Q:"},
            "teacher: prompt_template 'Q:' is neither 'chat' nor contains {prompt}",
        ),
        (
            {"teacher__prompt_template": "{prompt}", "teacher__template_arguments": {"enable_thinking": True}},
            "teacher: template_arguments has no effect with a text prompt_template: it is for chat templates",
        ),
        (
            {"student__template_arguments": {"enable_thinking:true": None}},
            "student: template_arguments: 'enable_thinking:true' is no name of a variable: write {name: value}",
        ),
        ({"registry__alias": "Latest"}, "registry: registry.alias 'Latest' is MLflow's own name for a version"),
        ({"registry__alias": "v12"}, "registry: registry.alias 'v12' is MLflow's own name for a version"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_both_named(changes: dict[str, Any], expected: str) -> None:
    assert refused(**changes) == f"{expected}; change one of the values named"


def test_accumulation() -> None:
    tree = tree_with(training__batch_size=24, training__micro_batch_size=2, cluster__workers=3)
    assert parse_recipe(tree).accumulation == 4


# ---- the same recipe, another one


def test_resolved_yaml_loads_to_an_equal_recipe(tmp_path: Path) -> None:
    tree = tree_with(
        run__name="1e5",
        student__prompt_template="a\n\t${b} \\${c} {prompt} é",
        data__train={"source": "generator", "function": "a.b:c", "arguments": {"x": None, "y": ["no", 1.5, "0x1"]}},
        training__optimizer={"betas": [0.5, 0.75], "learning_rate": 1e-9},
    )
    recipe = parse_recipe(tree)
    file = tmp_path / "resolved.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file, environment={}) == recipe


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="\\${}oc.env:HOME# '\"\n-", min_size=1, max_size=12))
def test_any_text_survives_the_resolved_yaml(tmp_path: Path, text: str) -> None:
    recipe = parse_recipe(tree_with(run__storage=text, teacher__prompt_template=text + "{prompt}"))
    file = tmp_path / "resolved.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file, environment={}) == recipe


SHAPES = {
    "run__seed": 1,
    "teacher__model": "org/other",
    "teacher__system_prompt": "Be brief.",
    "student__max_length": 99,
    "student__precision": "fp32",
    "student__keep_layers": [0],
    "student__freeze": ["lm_head.*"],
    "data__train__path": "e.jsonl",
    "data__columns__answer": "reply",
    "objective__uld": 0.5,
    "objective__alignment": "positional",
    "training__steps": 4,
    "training__batch_size": 16,
    "training__optimizer__eps": 1e-6,
    "training__schedule__kind": "linear",
}
NAMES = {"registry__alias": "champion", "registry__model_name": "m"}
RUNS_IT = {
    "run__storage": "elsewhere",
    "tracking__uri": "http://mlflow",
    "tracking__experiment": "e",
    "cluster__workers": 2,
    "cluster__hang_seconds": 60,
    "cluster__cpus_per_worker": 2,
    "cluster__threads_per_worker": 2,
    "cluster__placement_strategy": "SPREAD",
    "cluster__max_failures": 0,
    "cluster__dashboard_port": 8265,
    "training__checkpoint_every": 5,
    "training__keep_checkpoints": 1,
    "teacher__max_tokens_per_forward": 9,
    "student__gradient_checkpointing": True,
    "evaluation__micro_batch_size": 1,
    "evaluation__words": "unicode",
    "profile__steps": [3],
}


def test_digest_changes_with_what_shapes_the_student_and_nothing_else() -> None:
    mine = parse_recipe(TREE)
    digests = {mine.digest()}
    for key, value in SHAPES.items():
        digests.add(parse_recipe(tree_with(**{key: value})).digest())
    assert len(digests) == 1 + len(SHAPES)
    for key, value in {**NAMES, **RUNS_IT, "run__name": "b"}.items():
        assert parse_recipe(tree_with(**{key: value})).digest() == mine.digest(), key


def test_first_difference_names_what_makes_it_another_run() -> None:
    mine = parse_recipe(TREE)
    for key, value in {**SHAPES, **NAMES}.items():
        difference = mine.first_difference(parse_recipe(tree_with(**{key: value})))
        assert difference is not None and difference.startswith(f"{key.replace('__', '.')}: "), key
    for key, value in RUNS_IT.items():
        assert mine.first_difference(parse_recipe(tree_with(**{key: value}))) is None, key
    other = parse_recipe(tree_with(training__steps=4))
    assert mine.first_difference(other) == "training.steps: 3 -> 4"
    assert parse_recipe(tree_with(training__steps=None, training__epochs=1.0)).first_difference(mine) == (
        "training.epochs: 1.0 -> None"
    )


# ---- the models themselves


def test_every_key_of_a_recipe_is_read_somewhere() -> None:
    root = Path(uld_ds.__file__).parents[1]
    sources = [*(root / "uld_ds").rglob("*.py"), *(root / "launcher").rglob("*.py")]
    read = {
        node.attr
        for source in sources
        # A validator that looks at a key does not make anything happen.
        if source.parent.name != "recipe" or source.name == "schema.py"
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    unread = [key for key in known_keys(Recipe) if key.rpartition(".")[2] not in read]
    assert unread == []


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(TREE).training.steps = 9  # type: ignore[misc]


# ---- the teacher's words as bytes


def test_the_codecs_numbers_are_the_recipes() -> None:
    assert parse_recipe(TREE).teacher.codec.to_precision() == Precision()
    assert list(CodecSettings.model_fields) == [field.name for field in fields(Precision)] == list(BOUNDS)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_codecs_bounds_are_the_recipes(name: str) -> None:
    """What one of them accepts or refuses, the other does."""
    for bound, beyond in zip(BOUNDS[name], (-1, 1), strict=True):
        value = type(getattr(Precision, name))(bound)
        # A step this small fits 16 bits only beside masses that are even from 1 on.
        coarse = {"even_mass": 1.0} if name == "step" else {"step": 1.0} if name == "even_mass" else {}
        assert getattr(CodecSettings(**{name: value}, **coarse).to_precision(), name) == value
        further = value + beyond * (1 if isinstance(value, int) else 1e-9)
        assert refused(teacher__codec={name: further}).startswith(f"teacher.codec.{name}: Input should be ")
        with pytest.raises(ValueError, match=f"^{name} must lie in "):
            Precision(**{name: further})


def test_reading_a_recipe_needs_no_pytorch() -> None:
    code = "import sys; from uld_ds.recipe import CodecSettings; CodecSettings().to_precision(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "uld_ds.recipe" in loaded and "torch" not in loaded


def test_steps_too_fine_for_the_codec() -> None:
    codec = parse_recipe(tree_with(teacher__codec={"step": 0.001, "even_mass": 0.0001})).teacher.codec
    assert message(codec.to_precision) == (
        "teacher.codec: step 0.001 times even_mass 0.0001 is too fine for 16 bits; make step or even_mass larger"
    )
