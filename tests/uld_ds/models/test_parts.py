"""Parts of a model that do not fit together: tokenizer, embeddings, files, libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from tests.helpers import broken_folders as broken
from tests.helpers.tiny import save_tiny_t5
from uld_ds.data.examples import Example
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError
from uld_ds.models.locate import locate_model
from uld_ds.models.parts import check_config, check_vocabulary, embedding_rows, rows_needed
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.student import make_student
from uld_ds.recipe import ModelSettings, StudentSettings
from uld_ds.tokenization.spans import AlignmentError

FIX = "take tokenizer and weights of one model, or a tokenizer whose ids have rows"


def message(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def side(place: str) -> TextSide:
    settings = ModelSettings(model=place, prompt_template="{prompt}", max_length=64)
    return TextSide.of_model(Pretrained(place, key="teacher.model"), settings, "teacher")


# ---- tokenizer and embeddings


def test_tokens_of_text_without_a_row(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = broken.broken_copy(tiny_teacher, tmp_path / "copy", broken.another_vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token = next(token for token, number in tokenizer.get_vocab().items() if number >= 593)
    found = message(side, str(folder))
    assert found.startswith("teacher.model: its tokenizer has ") and found.endswith(f"have 593 rows; {FIX}")
    assert side(str(tiny_teacher))._rows is None
    assert message(check_vocabulary, tokenizer, 593, "MODEL").startswith("MODEL: its tokenizer has ")
    assert token in tokenizer.get_vocab()


def test_a_token_that_ends_sequences_without_a_row(tiny_teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.add_special_tokens({"eos_token": "<|done|>"})
    assert message(check_vocabulary, tokenizer, 600, "student.model") == (
        f"student.model: its tokenizer has '<|done|>' (eos) as id 600, and its embeddings have 600 rows; {FIX}"
    )


def test_an_added_token_without_a_row_is_a_bad_example_where_it_stands(
    tiny_teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Gemma 3's 1B has one for images, which it cannot see."""
    folder = broken.broken_copy(tiny_teacher, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(AddedToken("<image>", special=True, normalized=False))
    tokenizer.save_pretrained(folder)
    made = side(str(folder))
    assert "1 added tokens have no row among 600: examples with one are bad (<image>)" in caplog.text
    good, bad = Example.of("Why?", "So."), Example.of("Why <image>?", "So.")
    assert len(made.encode([made.render(good)])[0].ids) > 3
    problem = "'<image>' is token 600, beyond the 600 rows of the teacher's embeddings"
    for call in (lambda: made.encode([made.render(good), made.render(bad)]), lambda: made.prompt_ids(bad)):
        with pytest.raises(AlignmentError) as caught:
            call()
        assert str(caught.value) == problem


def test_a_student_gets_rows_for_every_id(tiny_student: Path, tmp_path: Path) -> None:
    """A vocabulary with a hole in it has larger ids than entries."""
    words = {"[UNK]": 0, "[PAD]": 1, "the": 2, "fox": 450}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert (len(tokenizer), rows_needed(tokenizer)) == (4, 451)
    settings = StudentSettings(model=str(tiny_student), tokenizer=str(tmp_path / "tokenizer"), max_length=64)
    made = Pretrained(str(make_student(settings, lambda: [], 0, tmp_path / "student")))
    assert made.embedding_rows() == 451
    assert check_vocabulary(made.tokenizer(), made.embedding_rows(), "x")


def test_rows_are_those_of_the_model_not_of_its_configuration(tiny_teacher: Path, tmp_path: Path) -> None:
    # Moshi's embeddings have a row more than its head: what a text holds must have one in both.
    assert embedding_rows(AutoConfig.for_model("moshi"), "x", "moshi") == 32000
    t5 = save_tiny_t5(tmp_path / "t5", AutoTokenizer.from_pretrained(tiny_teacher), seed=1)
    assert Pretrained(str(t5)).embedding_rows() == 600


def test_weights_of_another_size_than_the_configuration(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = broken.broken_copy(tiny_teacher, tmp_path / "copy", broken.another_size)
    assert message(side, str(folder)) == (
        f"teacher.model: the embeddings in '{folder}' have 600 rows, and its config.json says 664; "
        "take weights and configuration of one model"
    )


# ---- libraries


@pytest.mark.parametrize(
    ("method", "missing"),
    [
        ("gptq", "optimum and gptqmodel, not installed here; pip install optimum gptqmodel"),
        ("awq", "gptqmodel, not installed here; pip install gptqmodel"),
        ("compressed-tensors", "compressed-tensors, not installed here; pip install compressed-tensors"),
    ],
)
def test_quantized_weights_without_their_library(
    tiny_teacher: Path, tmp_path: Path, method: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uld_ds.models.parts.find_spec", lambda name: None)
    folder = broken.broken_copy(tiny_teacher, tmp_path / "copy")
    broken.edit_json(folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    settings = ModelSettings(model=str(folder), max_length=64)
    assert message(locate_model, settings, "teacher") == (
        f"teacher.model: the weights of '{folder}' are quantized ({method}), which needs {missing}, on every node, "
        "or take it unquantized"
    )


def test_other_quantizations() -> None:
    def check(**quantization: Any) -> None:
        check_config(LlamaConfig(quantization_config=quantization), "m", 64, "teacher")

    assert message(check, quant_method="cubes") == (
        "teacher.model: the weights of 'm' are quantized (cubes), which transformers does not know; take it unquantized"
    )
    assert message(check, quant_method="eetq").startswith("teacher.model: the weights of 'm' are quantized (eetq) (")
    # These are there; that there is no GPU here says nothing of the workers.
    check(quant_method="fp8", weight_block_size=[128, 128])
    check(quant_method="bitsandbytes", load_in_4bit=True)
