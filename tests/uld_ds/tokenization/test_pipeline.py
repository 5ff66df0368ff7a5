"""Where two tokenizers differ, and what makes no difference."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from uld_ds.tokenization.pipeline import differences

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB = {token: index for index, token in enumerate([*ALPHABET, "ab", "<s>"])}


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(VOCAB, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def changed(change: Callable[[dict[str, Any]], object], own: Tokenizer | None = None) -> list[str]:
    own = own or byte_level()
    description = json.loads(own.to_str())
    change(copied := copy.deepcopy(description))
    return differences(own, Tokenizer.from_str(json.dumps(copied)))


SEQUENCE = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda one: one.update(normalizer={"type": "NFC"}), ["normalizer"]),
        (lambda one: one.update(pre_tokenizer=SEQUENCE), ["pre-tokenizer"]),
        (lambda one: one["pre_tokenizer"].update(add_prefix_space=True), ["pre-tokenizer"]),
        (lambda one: one.update(decoder={"type": "Fuse"}), ["decoder"]),
        (lambda one: one["model"].update(merges=[]), ["model's merges"]),
        (lambda one: one["model"].update(ignore_merges=True), ["model's ignore_merges"]),
        (lambda one: one["model"]["vocab"].update({"more": 258}), ["model's vocab"]),
        (lambda one: one.update(added_tokens=[]), ["without <s>"]),
        (lambda one: one["added_tokens"].append(one["added_tokens"][0] | {"id": 258, "content": "<x>"}), ["added <x>"]),
    ],
)
def test_a_difference_is_named(change: Callable[[dict[str, Any]], object], expected: list[str]) -> None:
    assert changed(change) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda one: None,
        lambda one: one["pre_tokenizer"].update(trim_offsets=False),
        lambda one: one.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [one["pre_tokenizer"]]}),
        lambda one: one["decoder"].update(add_prefix_space=False, use_regex=False),
        lambda one: one["model"].update(continuing_subword_prefix="", end_of_word_suffix="", dropout=None),
        # Every byte is known: what becomes of unknown ones is never asked.
        lambda one: one["model"].update(unk_token="<s>", fuse_unk=True, byte_fallback=True),
        lambda one: one.update(post_processor=None, truncation=None, padding=None),
    ],
)
def test_what_makes_no_difference(change: Callable[[dict[str, Any]], object]) -> None:
    assert changed(change) == []


def test_unknown_characters_make_one_where_there_are_any() -> None:
    own = Tokenizer(models.BPE({"a": 0, "b": 1, "?": 2}, [], unk_token="?"))
    assert changed(lambda one: one["model"].update(fuse_unk=True), own) == ["model's fuse_unk"]
    assert changed(lambda one: one["model"].update(unk_token=None), own) == ["model's unk_token"]


def test_the_first_unknown_id_is_not_none() -> None:
    own = Tokenizer(models.Unigram([("?", 0.0), ("a", -1.0)], unk_id=0))
    assert changed(lambda one: one["model"].update(unk_id=1), own) == ["model's unk_id"]
    assert changed(lambda one: one["model"].update(unk_id=None), own) == ["model's unk_id"]


def test_other_kinds_of_models_are_named_alone() -> None:
    own = Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)]))
    own.normalizer = normalizers.NFC()
    made = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    assert differences(own, made) == ["normalizer", "model BPE for Unigram"]


def test_tokens_that_files_beside_it_name_are_no_difference() -> None:
    own, made = byte_level(), byte_level()
    made.add_special_tokens(["<pad>", "<class>"])
    assert differences(own, made, {"<pad>"}) == ["added <class>"]
    made = byte_level()
    made.add_special_tokens(["ab"])  # special, and at its place
    assert differences(own, made) == []
