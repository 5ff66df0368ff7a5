"""What is written beside a student."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.data.chat_templates import chat_template_of
from uld_ds.data.examples import Example
from uld_ds.data.sides import TextSide
from uld_ds.recipe import parse_recipe
from uld_ds.reporting.model_card import DESCRIPTION_LIMIT, description, model_card, teacher_license

FACTS: dict[str, Any] = {
    "teacher": "org/large",
    "data_digest": "ab" * 32,
    "eval_data_digest": "cd" * 32,
    "alignment": "segments",
    "alignment_rate": 0.75,
    "ce_weight": 1.0,
    "uld_weight": 1.5,
    "bits_per_byte_before": 4.0,
    "bits_per_byte_after": 2.123456,
    "bits_per_byte_teacher": None,
}


def test_card_reads_back_with_its_metadata(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tree = tiny_recipe | {"teacher": {"model": "org/large"}}
    (tmp_path / "README.md").write_text(model_card(parse_recipe(tree), FACTS, {}))
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.base_model == ["org/large"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("bits_per_byte", 2.123456)
    for part in ("# tiny-student", "| after | 2.1235 |", "| teacher | - |", "ab" * 32, "1.5 x ULD", "tells no license"):
        assert part in card.text, part


def test_every_teacher_has_its_link_its_weight_and_its_license(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Free for all\n")
    tree = {key: value for key, value in tiny_recipe.items() if key != "teacher"}
    teachers = [
        {"name": "general", "model": "org/large", "weight": 0.7},
        {"name": "code", "source": "stored", "path": "s", "weight": 0.3},
    ]
    card = ModelCard(model_card(parse_recipe(tree | {"teachers": teachers}), FACTS, {"code": str(tmp_path)}))
    assert card.data.base_model == ["org/large"]
    for part in (
        "A student that [org/large](https://huggingface.co/org/large) and [code](#made-from) taught by",
        "(https://arxiv.org/abs/2402.12030)), summed over teachers (0.7 org/large, 0.3 code), alignment",
        "- The teacher org/large tells no license here",
        "- The teacher code is under `Free for all`.",
    ):
        assert part in card.text, part


def test_who_can_read_it_is_told(tiny_recipe: dict[str, Any]) -> None:
    recipe = parse_recipe(tiny_recipe)
    without = ModelCard(model_card(recipe, FACTS, {})).text
    card = ModelCard(model_card(recipe, FACTS, {}, readers="Read it with transformers 5.")).text
    assert "(`tokenizer.apply_chat_template`).\n\nRead it with transformers 5.\n\n## License notes\n" in card
    assert card.replace("Read it with transformers 5.\n\n", "") == without


def test_paths_are_no_base_models(tiny_recipe: dict[str, Any]) -> None:
    card = ModelCard(model_card(parse_recipe(tiny_recipe), FACTS, {}))
    assert card.data.base_model is None


def test_license_of_the_teacher_is_told(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    assert teacher_license(str(tmp_path)) is None
    (tmp_path / "LICENSE").write_text("\n   Apache License\n   Version 2.0\n")
    assert teacher_license(str(tmp_path)) == "Apache License"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A teacher\n")
    assert teacher_license(str(tmp_path)) == "mit"
    assert "is under `mit`" in model_card(parse_recipe(tiny_recipe), FACTS, {"teacher": str(tmp_path)})


def test_description_has_results_and_pictures_and_fits() -> None:
    text = description("first", FACTS, "0123", ["plots/loss.svg"])
    assert "![plots/loss.svg](get-artifact?path=plots%2Floss.svg&run_uuid=0123)" in text
    assert "| after | 2.1235 |" in text
    long = description("first", {**FACTS, "a": "x" * 4000, "b": "y" * 4000}, "0123", [])
    assert len(long) <= DESCRIPTION_LIMIT
    assert long.endswith("|\n")


@pytest.mark.parametrize("system", [None, "You are brief."])
def test_text_template_as_a_chat_template(tiny_recipe: dict[str, Any], tiny_student: Path, system: str | None) -> None:
    tree = copy.deepcopy(tiny_recipe)
    tree["student"] |= {"prompt_template": 'Question "x": {prompt}\nAnswer:', "system_prompt": system}
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    tokenizer.chat_template = chat_template_of(parse_recipe(tree).student, tokenizer)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    before = f"{system}\n\n" if system else ""
    assert text == f'Question "x": {before}Why?\nAnswer:'
    assert json.loads(json.dumps(tokenizer.chat_template))


@pytest.mark.parametrize(("name", "ending"), [("gpt2", "\nAnswer:"), ("characters", "\nAnswer: ")])
def test_a_space_that_an_answers_first_token_has_is_left_to_it(
    tiny_recipe: dict[str, Any], name: str, ending: str
) -> None:
    tree = copy.deepcopy(tiny_recipe)
    tree["student"] |= {"prompt_template": "{prompt}\nAnswer: "}
    tokenizer = copy.deepcopy(zoo.ALL[name]())
    settings = parse_recipe(tree).student
    tokenizer.chat_template = chat_template_of(settings, tokenizer)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
    assert asked == f"Why?{ending}"
    # What it is asked with is what it was trained to answer after.
    assert tokenizer(asked)["input_ids"] == TextSide(tokenizer, settings, "student").prompt_ids(Example.of("Why?", ""))
