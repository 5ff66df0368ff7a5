"""Byte spans where the tokens do not spell the text: bridged, filled in, or refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.span_texts import tokenizer_named
from uld_ds.tokenization.span_matching import first_difference
from uld_ds.tokenization.spans import AlignmentError, spans_of_ids, token_spans


def word_tokenizer(vocab: Sequence[str], normalizer: Any = None, pre_tokenizer: Any = None) -> Any:
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["?", *vocab])}, unk_token="?"))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path="the-one")


def test_characters_removed_between_tokens_are_bridged_by_offsets() -> None:
    tokenizer = word_tokenizer(["a", "bc"], pre_tokenizer=pre_tokenizers.CharDelimiterSplit("é"))
    assert token_spans(tokenizer, "aébcéa") == [(0, 3), (3, 7), (7, 8)]


def test_a_rewriting_that_depends_on_its_neighbors_is_bridged_by_offsets() -> None:
    # "a" becomes "x" only before a "b": no single character shows that, the characters of the token do.
    tokenizer = word_tokenizer(["cxb"], normalizer=normalizers.Replace(Regex("a(?=b)"), "x"))
    assert token_spans(tokenizer, "é cab") == [(0, 2), (2, 6)]


def test_a_mark_that_normalization_leaves_alone_keeps_its_boundary() -> None:
    single = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = word_tokenizer(["a", "\u0302"], normalizer=normalizers.Lowercase(), pre_tokenizer=single)
    assert token_spans(tokenizer, "A\u0302") == [(0, 1), (1, 3)]


def test_a_rewriting_of_several_characters_at_once_is_found_by_asking_the_normalizer() -> None:
    # The offsets that the library gives for such a pattern are those of its last character.
    tokenizer = word_tokenizer(["x", "c"], normalizer=normalizers.Replace(Regex("a+b"), " x "))
    assert token_spans(tokenizer, "c aab c") == [(0, 1), (1, 5), (5, 7)]


def test_tokens_that_spell_something_else_are_an_error() -> None:
    tokenizer = word_tokenizer(["b", "c"], normalizer=normalizers.Prepend("b "))
    with pytest.raises(AlignmentError, match=r"the-one .*first disagree at byte 0 of 3, before b'c c'"):
        token_spans(tokenizer, "c c")


def test_ids_of_another_text_are_an_error() -> None:
    tokenizer = tokenizer_named("plain_bytes")
    ids = tokenizer("abd")["input_ids"]
    with pytest.raises(AlignmentError, match="byte 2 of 3"):
        spans_of_ids(tokenizer, "abc", ids)
    with pytest.raises(AlignmentError, match="byte 3 of 4"):
        spans_of_ids(tokenizer, "abde", ids)
    with pytest.raises(AlignmentError, match="byte 0 of 2"):
        spans_of_ids(tokenizer, "bd", ids)


def test_offsets_given_with_ids_settle_unknown_tokens() -> None:
    tokenizer = tokenizer_named("characters")
    ids = tokenizer("aéçb")["input_ids"]
    offsets = [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert spans_of_ids(tokenizer, "aéçb", ids, offsets).tolist() == [[0, 1], [1, 3], [3, 5], [5, 6]]
    assert spans_of_ids(tokenizer, "aéçb", ids).tolist() == [[0, 1], [1, 3], [3, 5], [5, 6]]


def test_a_lone_surrogate_is_an_error() -> None:
    with pytest.raises(AlignmentError, match=r"lone surrogate \(U\+D83D\) at character 2"):
        token_spans(tokenizer_named("plain_bytes"), "ab\ud83d")


def test_a_text_that_the_tokenizer_refuses_is_an_error() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="gone"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path="the-one")
    with pytest.raises(AlignmentError, match=r"the-one .*cannot encode the text"):
        token_spans(tokenizer, "b")


def test_two_unknown_words_with_nothing_between_are_not_guessed() -> None:
    assert token_spans(tokenizer_named("slow_wordpiece"), "☃ ☂") == [(0, 0), (0, 7)]


def test_offsets_are_not_trusted_in_a_stretch_that_begins_with_what_is_dropped() -> None:
    # tokenizers 0.23: Precompiled moves every offset by the characters dropped at the beginning.
    tokenizer = copy.deepcopy(tokenizer_named("unigram_xlmr"))
    tokenizer.add_tokens([AddedToken("<X>", normalized=False)])
    assert token_spans(tokenizer, "☃ ☂<X>a") == [(0, 0), (0, 3), (3, 4), (4, 7), (7, 10), (10, 11)]
    # "a", "<X>" with the dropped character, the mark of the stretch, two unknown words and the mark between them.
    assert token_spans(tokenizer, "a<X>\x13☃ ☂") == [(0, 1), (1, 5), (5, 5), (5, 5), (5, 5), (5, 12)]


def test_first_difference() -> None:
    assert first_difference(b"abc", b"abd") == 2
    assert first_difference(b"abc", b"abcd") == 3
