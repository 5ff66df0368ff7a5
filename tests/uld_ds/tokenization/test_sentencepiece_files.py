"""Folders with a SentencePiece model alone cut text as the sentencepiece library does."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.alignment import token_spans
from uld_ds.errors import UserError
from uld_ds.tokenization import loading, notices
from uld_ds.tokenization.loading import load_tokenizer

TEXTS = ("It's  the (re)read words.", " two  spaces", "größer ½ ﬁne", "x\n\ny", "日本語 <s>", "")
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.fixture(autouse=True)
def _nothing_said_yet(caplog: pytest.LogCaptureFixture) -> None:
    notices.say.cache_clear()
    caplog.set_level(logging.WARNING)


def folder_with(folder: Path, architecture: str, settings: dict[str, Any] | None, **options: Any) -> tuple[Path, Any]:
    """A folder with a SentencePiece model alone, and the library's own view of it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    lines = [line for line in zoo.corpus() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=1000, character_coverage=0.99, pad_id=3,
        minloglevel=2, **options,
    )  # fmt: skip
    folder.mkdir()
    (folder / ("spiece.model" if architecture == "t5" else "tokenizer.model")).write_bytes(out.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": architecture}))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder, sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


CASES = {
    "Llama 2": (
        "llama",
        {"tokenizer_class": "LlamaTokenizer"},
        {"model_type": "bpe", "byte_fallback": True, **IDENTITY},
    ),
    "Llama without settings": ("llama", None, {"model_type": "bpe", "byte_fallback": True, **IDENTITY}),
    "BPE, normalized": ("llama", None, {"model_type": "bpe"}),
    "Unigram": ("llama", {"tokenizer_class": "LlamaTokenizer"}, {"model_type": "unigram"}),
    "T5": ("t5", None, {"model_type": "unigram"}),
    "T5 with bytes": ("t5", None, {"model_type": "unigram", "byte_fallback": True}),
    "no space before the text": ("llama", None, {"model_type": "unigram", "add_dummy_prefix": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_are_the_librarys(tmp_path: Path, case: str) -> None:
    architecture, settings, options = CASES[case]
    folder, processor = folder_with(tmp_path / "x", architecture, settings, **options)
    tokenizer = load_tokenizer(str(folder), None, "student.model")
    for text in TEXTS:
        if "<s>" in text:  # in a tokenizer's text it is the special token, in the library's it is spelled
            assert tokenizer(text, add_special_tokens=False)["input_ids"][-1] == processor.bos_id()
        else:
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == processor.encode(text), text
    assert (tokenizer.unk_token_id, tokenizer.eos_token_id) == (processor.unk_id(), processor.eos_id())


def test_what_is_added_around_a_text_stays_and_a_copy_loads_alike(tmp_path: Path) -> None:
    folder, processor = folder_with(tmp_path / "x", "t5", None, model_type="unigram")
    tokenizer = load_tokenizer(str(folder), None, "student.model")
    assert tokenizer("the words")["input_ids"] == [*processor.encode("the words"), processor.eos_id()]
    assert len(tokenizer) == 1100  # T5's hundred blanks
    tokenizer.save_pretrained(tmp_path / "copy")
    copy = load_tokenizer(str(tmp_path / "copy"), None, "student.model")
    for text in TEXTS:
        assert copy(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_spans_of_a_rebuilt_one(tmp_path: Path) -> None:
    folder, _ = folder_with(tmp_path / "x", "llama", None, model_type="bpe", byte_fallback=True, **IDENTITY)
    tokenizer = load_tokenizer(str(folder), None, "student.model")
    text = "größer  als 日"
    spans = token_spans(tokenizer, text)
    assert spans[0][0] == 0 and spans[-1][1] == len(text.encode())
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def test_that_it_was_rebuilt_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = folder_with(tmp_path / "x", "llama", None, model_type="bpe", byte_fallback=True, **IDENTITY)
    load_tokenizer(str(folder), None, "student.model")
    (line,) = [record.getMessage() for record in caplog.records if record.name == notices.__name__]
    assert line.startswith(
        f"{folder}: rebuilt from tokenizer.model; TokenizersBackend, which AutoTokenizer and so other programs make of "
        'it, is another tokenizer: "The cat\'s 12 naïve words, unbelievably (re)read." becomes ['
    )


def test_without_the_library_its_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    monkeypatch.setattr(loading, "find_spec", lambda _: None)

    def missing(*_: Any) -> None:
        raise ImportError("SentencePieceExtractor requires the SentencePiece library")

    # The package's lazy module has a function of the same name.
    monkeypatch.setattr(importlib.import_module("transformers.convert_slow_tokenizer"), "requires_backends", missing)
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(tmp_path), None, "student.model")
    assert str(caught.value) == (
        f"student.model: no tokenizer at '{tmp_path}' (to read its SentencePiece model the package sentencepiece is "
        "missing: pip install sentencepiece); name a folder or hub id that has one"
    )
