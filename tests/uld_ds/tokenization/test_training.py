"""Tokenizers trained here lose no byte, and mark turns with tokens of their own."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from uld_ds.errors import UserError
from uld_ds.tokenization.training import END_OF_TURN, PADDING, ROLES, train_tokenizer

Kind = Literal["unigram", "bpe"]
KINDS: tuple[Kind, ...] = ("unigram", "bpe")
TEXTS = ["Return the absolute path of a file.", "Return True if the path is absolute, False otherwise."] * 20


@pytest.fixture(scope="module")
def trained() -> dict[Kind, PreTrainedTokenizerBase]:
    return {kind: train_tokenizer(kind, 320, iter(TEXTS)) for kind in KINDS}


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_byte_for_byte(trained: dict[Kind, PreTrainedTokenizerBase], text: str) -> None:
    for tokenizer in trained.values():
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_pieces_of_the_text(kind: Kind, trained: dict[Kind, PreTrainedTokenizerBase]) -> None:
    tokenizer = trained[kind]
    assert 256 + 5 < len(tokenizer) <= 320
    assert len(tokenizer(TEXTS[0])["input_ids"]) < len(TEXTS[0])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_chat_template(kind: Kind, trained: dict[Kind, PreTrainedTokenizerBase]) -> None:
    tokenizer = trained[kind]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (PADDING, END_OF_TURN, None)
    messages = [{"role": role, "content": role[0]} for role in ROLES]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|>"
    assert len(tokenizer(text)["input_ids"]) == 9
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True).endswith(
        "<|end|><|assistant|>"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn_from(kind: Kind) -> None:
    with pytest.raises(UserError, match=r"^student.tokenizer: no row of data.train has text to train it on; corr"):
        train_tokenizer(kind, 300, ["", ""])


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_repeatable(kind: Kind) -> None:
    first, second = (train_tokenizer(kind, 320, TEXTS) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
