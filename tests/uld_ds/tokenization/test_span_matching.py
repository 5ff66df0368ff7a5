"""Byte spans where the tokens do not spell the text: bridged, filled in, or refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.span_texts import tokenizer_named
from uld_ds.tokenization.span_matching import first_difference, only_fill
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


def test_tokens_that_spell_something_else_are_an_error() -> None:
    # The offsets that the library gives for such a pattern are those of its last character.
    tokenizer = word_tokenizer(["x", "c"], normalizer=normalizers.Replace(Regex("a+b"), " x "))
    with pytest.raises(AlignmentError, match=r"the-one .*first disagree at byte 4 of 7, before b'b c'"):
        token_spans(tokenizer, "c aab c")


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
    with pytest.raises(AlignmentError, match="BertTokenizerLegacy"):
        token_spans(tokenizer_named("slow_wordpiece"), "☃ ☂")


PIECES = st.lists(st.sampled_from([b"a", b"b", b"ab", None]), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES.filter(lambda p: None in p), wanted=st.text("ab", min_size=1, max_size=9).map(str.encode))
def test_unknown_pieces_are_filled_only_if_there_is_one_way(pieces: list[bytes | None], wanted: bytes) -> None:
    unknown = [number for number, piece in enumerate(pieces) if piece is None]
    sizes = itertools.product(range(1, len(wanted) + 1), repeat=len(unknown))
    layouts = []
    for size in sizes:
        if sum(size) + sum(len(piece or b"") for piece in pieces) == len(wanted):
            place, fills, rest = 0, [], list(size)
            for piece in pieces:
                length = rest.pop(0) if piece is None else len(piece)
                if piece is None:
                    fills.append(wanted[place : place + length])
                elif wanted[place : place + length] != piece:
                    break
                place += length
            else:
                layouts.append(fills)
    found = only_fill([piece or b"" for piece in pieces], unknown, [(0, len(wanted))] * len(unknown), wanted)
    assert found is None or [found] == layouts
    if len(layouts) == 0 or len(unknown) == 1:
        assert found == (layouts[0] if layouts else None)


def test_windows_tell_neighboring_unknown_pieces_apart() -> None:
    assert only_fill([b"a", b"", b"", b"b"], [1, 2], [(1, 3), (3, 4)], b"axyzb") == [b"xy", b"z"]
    assert only_fill([b"a", b"", b"", b"b"], [1, 2], [(0, 5), (0, 5)], b"axyzb") is None


def test_an_unknown_piece_may_be_nothing_only_where_all_is_whitespace() -> None:
    assert only_fill([b"", b"a"], [0], [(0, 0)], b"a") == [b""]
    assert only_fill([b"", b"a"], [0], [(0, 1)], b"a") is None


def test_first_difference() -> None:
    assert first_difference(b"abc", b"abd") == 2
    assert first_difference(b"abc", b"abcd") == 3
