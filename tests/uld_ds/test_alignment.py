"""Byte spans of every tokenizer family, and the segments two tokenizations form."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tokenizers_zoo as zoo
from uld_ds.alignment import (
    AlignmentError,
    Segment,
    align,
    alignment_rate,
    batch_token_spans,
    segment_boundaries,
    spans_of_ids,
    token_spans,
)
from uld_ds.span_readings import first_difference, only_fill

Spans = list[tuple[int, int]]

# Scripts, joiners, marks, controls, code, and what tokenizers use as marks of their own.
PARTS = [
    *("hello world", "The quick brown fox, 123.45!", "def f(x):\n\treturn x  # ok\n", "``quoted''", "x"),
    *(" ", "   ", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\x85"),
    *("中文字符", "日本語の", "한국어", "\u1100\u1161\u11a8", "ｶﾞ", "Ａ", "ไทย", "हिन्दी"),
    *("é", "e\u0301", "a\u0308\u0323", "\u0301", "ﬁ", "½", "ß", "İ", "Σς", "ǅ", "𝔸"),
    *("مرحبا", "שָׁלוֹם", "\u200f", "👩‍👩‍👧", "🇩🇪", "👍🏽", "\u200d", "\u200b", "\ufeff"),
    *("\x00", "\x01", "\x04", "\x1b", "\x7f", "\ufffd", "\U000f0000", "\U0010ffff", "\u0378"),
    *("▁", "Ġ", "##", "</w>", "<0x0A>", "<unk>", "[UNK]", "<s>", "</s>", "<|endoftext|>"),
    *("[MASK]", "<mask>", "<Mask>", "<|im_start|>", "émile", "ÉMILE"),
]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=6)), min_size=1, max_size=8).map("".join)
FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Whose unknown tokens can be two in a row with nothing to tell their extents apart: these may refuse a text.
MAY_REFUSE = {"slow_wordpiece", "clip_style"}


def tokenizer_named(name: str) -> Any:
    try:
        return zoo.ALL[name]()
    except zoo.MissingPackageError as missing:
        pytest.skip(str(missing))


def random_text(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(1, 8)):
        kind = rng.random()
        if kind < 0.75:
            parts.append(rng.choice(PARTS))
        elif kind < 0.85:
            parts.append("".join(chr(rng.randint(32, 126)) for _ in range(rng.randint(1, 8))))
        else:
            low, high = rng.choice([(0, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)])
            parts.append(chr(rng.randint(low, high)))
    return "".join(parts)


def reference_starts(mine: Spans, others: Spans) -> list[int]:
    """Brute force: the tokens whose (start, order among tokens with that start) also occurs on the other side."""

    def keys(spans: Spans) -> list[tuple[int, int]]:
        return [(start, [s for s, _ in spans[:index]].count(start)) for index, (start, _) in enumerate(spans)]

    shared = set(keys(others))
    return [index for index, key in enumerate(keys(mine)) if key in shared]


def check_segments(student: Spans, teacher: Spans) -> None:
    """Everything that is promised about segments."""
    segments = align(student, teacher)
    assert [i for segment in segments for i in segment.student] == list(range(len(student)))
    assert [i for segment in segments for i in segment.teacher] == list(range(len(teacher)))
    for segment in segments:
        own, other = segment.student, segment.teacher
        assert len(own) > 0
        assert len(other) > 0
        assert student[own.start][0] == teacher[other.start][0]
        assert student[own.stop - 1][1] == teacher[other.stop - 1][1]
    assert [segment.student.start for segment in segments] == reference_starts(student, teacher)
    assert [segment.teacher.start for segment in segments] == reference_starts(teacher, student)
    assert align(teacher, student) == [Segment(s.teacher, s.student) for s in segments]


def check_tiling(spans: Spans, num_bytes: int) -> None:
    assert spans[0][0] == 0
    assert spans[-1][1] == num_bytes
    assert all(start <= end for start, end in spans)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


# --- spans: cases computed by hand --------------------------------------------------------------------------------

HAND_COMPUTED = [
    # A character of three bytes cut in two: one token, one byte each.
    ("gpt2", "中文", [("ä¸Ń", 0, 3), ("æĸ", 3, 5), ("ĩ", 5, 6)]),
    # The space before the text is not in it: a token of no width, or one byte less.
    ("mistral", "中 a  b", [("▁", 0, 0), ("中", 0, 3), ("▁a", 3, 5), ("▁", 5, 6), ("▁b", 6, 8)]),
    ("gpt2_prefix_space", "hello world", [("Ġhello", 0, 5), ("Ġworld", 5, 11)]),
    ("gemma_style", "a  b", [("a", 0, 1), ("▁", 1, 2), ("▁b", 2, 4)]),
    # A space is put before every stretch of text between special tokens.
    (
        "llama2_style",
        "<s>hi</s> x",
        [("<s>", 0, 3), ("▁hi", 3, 5), ("</s>", 5, 9), ("▁", 9, 9), ("▁x", 9, 11)],
    ),
    ("mistral", "𐀀", [("▁", 0, 0), ("<0xF0>", 0, 1), ("<0x90>", 1, 2), ("<0x80>", 2, 3), ("<0x80>", 3, 4)]),
    # The mark for a space, in the text, counts three bytes though the token spells one.
    ("mistral", "a▁b", [("▁a", 0, 1), ("▁b", 1, 5)]),
    # SmolLM2's vocabulary lacks the byte 0x04; what is dropped belongs to the token before.
    ("smollm2", "a\x04b", [("a", 0, 2), ("b", 2, 3)]),
    # Whitespace is dropped and belongs to the token after; a dropped control character to the one before.
    ("wordpiece", "Ünïted  Kingdom", [("united", 0, 8), ("kingdom", 8, 17)]),
    ("wordpiece", "a\u0301b\x00c  x ", [("abc", 0, 6), ("x", 6, 10)]),
    ("wordpiece", "so ☃☃ x", [("so", 0, 2), ("[UNK]", 2, 9), ("x", 9, 11)]),
    ("wordpiece", "unaffable", [("una", 0, 3), ("##ffa", 3, 6), ("##ble", 6, 9)]),
    ("slow_wordpiece", "Ünïted ☃ Kingdom", [("united", 0, 8), ("[UNK]", 8, 12), ("kingdom", 12, 20)]),
    ("wordpiece_added", "a <Mask> b", [("a", 0, 1), ("<Mask>", 1, 8), ("b", 8, 10)]),
    # Added tokens that take the whitespace around them.
    (
        "gpt2_added",
        "a  <mask>  b<|im_end|>",
        [("a", 0, 1), ("<mask>", 1, 11), ("b", 11, 12), ("<|im_end|>", 12, 22)],
    ),
    ("gpt2_added", "a  b  <mask>", [("a", 0, 1), ("Ġ", 1, 2), ("Ġb", 2, 4), ("<mask>", 4, 12)]),
    # The name of the unknown token stands in the text; after it, too, comes a space that is not there.
    (
        "llama2_style",
        "a<unk>\u2028b",
        [
            ("▁a", 0, 1),
            ("<unk>", 1, 6),
            ("▁", 6, 6),
            ("<0xE2>", 6, 7),
            ("<0x80>", 7, 8),
            ("<0xA8>", 8, 9),
            ("b", 9, 10),
        ],
    ),
    # An added token that is looked for in the lower-cased text.
    ("wordpiece_added", "a ÉMILE", [("a", 0, 1), ("emile", 1, 8)]),
    # A combining mark after a special token is normalised apart from it.
    (
        "gpt2_nfc",
        "e\u0301<|endoftext|>\u0338x",
        [("Ã©", 0, 3), ("<|endoftext|>", 3, 16), ("Ì", 16, 17), ("¸", 17, 18), ("x", 18, 19)],
    ),
    # NFC makes one character of "e" and its accent: three bytes, one token.
    ("gpt2_nfc", "cafe\u0301 x", [("c", 0, 1), ("af", 1, 3), ("Ã©", 3, 6), ("Ġx", 6, 8)]),
    # ... and one of three jamo, in three tokens: only the last one completes it.
    ("gpt2_nfc", "\u1100\u1161\u11a8x", [("ê", 0, 0), ("°", 0, 0), ("ģ", 0, 9), ("x", 9, 10)]),
    ("byt5", "aé", [("a", 0, 1), ("Ã", 1, 2), ("©", 2, 3)]),
    ("byt5", "<unk><unk>a", [("<unk>", 0, 5), ("<unk>", 5, 10), ("a", 10, 11)]),
    ("canine", "aé中", [("a", 0, 1), ("é", 1, 3), ("中", 3, 6)]),
    ("characters", "aé\n", [("a", 0, 1), ("[UNK]", 1, 3), ("\n", 3, 4)]),
    ("word_level", "a ☃  b", [("a", 0, 1), ("[UNK]", 1, 5), ("b", 5, 8)]),
]


@pytest.mark.parametrize(("name", "text", "expected"), HAND_COMPUTED)
def test_spans_computed_by_hand(name: str, text: str, expected: list[tuple[str, int, int]]) -> None:
    tokenizer = tokenizer_named(name)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert list(zip(tokens, token_spans(tokenizer, text), strict=True)) == [(t, (a, b)) for t, a, b in expected]


def test_unigram_collapses_whitespace_and_expands_ligatures() -> None:
    tokenizer = tokenizer_named("unigram_t5")
    text = "in   ☃ ﬁ  "
    covered = {}
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    for token, (start, end) in zip(tokens, token_spans(tokenizer, text), strict=True):
        covered[token] = text.encode()[start:end].decode()
    assert covered["<unk>"] == "☃"
    # The ligature is complete with the token that spells its last letter, which takes what trails the text, too.
    assert covered[tokens[-1]] == "ﬁ  " or (tokens[-1], covered[tokens[-1]]) == ("▁fi", " ﬁ  ")


# --- spans: for any text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names(zoo.ALL))
@FEW
@given(text=TEXTS)
def test_spans_tile_the_text(name: str, text: str) -> None:
    tokenizer = tokenizer_named(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    try:
        spans = token_spans(tokenizer, text)
    except AlignmentError:
        assert name in MAY_REFUSE
        return
    assert len(spans) == len(ids)
    if spans:
        check_tiling(spans, len(text.encode()))


@pytest.mark.parametrize("name", ["gpt2", "deepseek", "tekken", "plain_bytes", "unigram_bytes"])
@FEW
@given(text=TEXTS)
def test_every_prefix_decodes_to_the_bytes_up_to_its_span(name: str, text: str) -> None:
    """An oracle of its own: the tokenizer's decoder."""
    tokenizer = tokenizer_named(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for count, (_, end) in enumerate(token_spans(tokenizer, text), start=1):
        decoded = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert decoded == text.encode()[:end].decode(errors="replace")


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma_style", "wordpiece", "unigram_t5", "word_level"])
@FEW
@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
def test_spans_agree_with_offsets_on_ascii(name: str, text: str) -> None:
    """Another oracle: the character offsets, which are bytes here.

    Whitespace at the ends is ours to assign: a dummy prefix covers leading blanks here, the next character there.
    """
    tokenizer = tokenizer_named(name)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for (start, end), offset in zip(token_spans(tokenizer, text), offsets, strict=True):
        if text[start:end].strip():
            assert text[start:end].strip() == text[slice(*offset)].strip()


@pytest.mark.parametrize("name", ["smollm2", "mistral", "llama2_style", "unigram_albert", "gpt2_added", "byt5"])
@FEW
@given(texts=st.lists(TEXTS, max_size=5))
def test_a_batch_is_its_texts_one_by_one(name: str, texts: list[str]) -> None:
    tokenizer = tokenizer_named(name)
    ids, spans = batch_token_spans(tokenizer, texts)
    for text, row, pairs in zip(texts, ids, spans, strict=True):
        assert row.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert pairs.shape == (len(row), 2)
        assert [tuple(pair) for pair in pairs.tolist()] == token_spans(tokenizer, text)
        assert spans_of_ids(tokenizer, text, row.tolist()).tolist() == pairs.tolist()


def test_a_batch_longer_than_one_round_of_normal_forms() -> None:
    tokenizer = tokenizer_named("unigram_t5")
    texts = [f"Line {number}  ﬁne " * (number % 7) for number in range(150)]
    _, spans = batch_token_spans(tokenizer, texts)
    assert [[tuple(pair) for pair in row.tolist()] for row in spans] == [token_spans(tokenizer, t) for t in texts]


def test_no_text_has_no_tokens() -> None:
    tokenizer = tokenizer_named("plain_bytes")
    assert token_spans(tokenizer, "") == []
    assert batch_token_spans(tokenizer, []) == ([], [])
    assert token_spans(tokenizer_named("word_level"), "  \n") == []


def test_tokens_added_later_are_found() -> None:
    vocab = {"[UNK]": 0, "a": 1}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_spans(tokenizer, "A<X>a") == [(0, 5)]
    tokenizer.add_tokens([AddedToken("<X>", normalized=False)])
    assert token_spans(tokenizer, "A<X>a") == [(0, 1), (1, 4), (4, 5)]


# --- spans: where the tokens do not spell the text ----------------------------------------------------------------


def word_tokenizer(vocab: Sequence[str], normalizer: Any = None, pre_tokenizer: Any = None) -> Any:
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["?", *vocab])}, unk_token="?"))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path="the-one")


def test_characters_removed_between_tokens_are_bridged_by_offsets() -> None:
    tokenizer = word_tokenizer(["a", "bc"], pre_tokenizer=pre_tokenizers.CharDelimiterSplit("é"))
    assert token_spans(tokenizer, "aébcéa") == [(0, 3), (3, 7), (7, 8)]


def test_a_rewriting_that_depends_on_its_neighbours_is_bridged_by_offsets() -> None:
    # "a" becomes "x" only before a "b": no single character shows that, the characters of the token do.
    tokenizer = word_tokenizer(["cxb"], normalizer=normalizers.Replace(Regex("a(?=b)"), "x"))
    assert token_spans(tokenizer, "é cab") == [(0, 2), (2, 6)]


def test_a_mark_that_normalisation_leaves_alone_keeps_its_boundary() -> None:
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


def test_windows_tell_neighbouring_unknown_pieces_apart() -> None:
    assert only_fill([b"a", b"", b"", b"b"], [1, 2], [(1, 3), (3, 4)], b"axyzb") == [b"xy", b"z"]
    assert only_fill([b"a", b"", b"", b"b"], [1, 2], [(0, 5), (0, 5)], b"axyzb") is None


def test_an_unknown_piece_may_be_nothing_only_where_all_is_whitespace() -> None:
    assert only_fill([b"", b"a"], [0], [(0, 0)], b"a") == [b""]
    assert only_fill([b"", b"a"], [0], [(0, 1)], b"a") is None


def test_first_difference() -> None:
    assert first_difference(b"abc", b"abd") == 2
    assert first_difference(b"abc", b"abcd") == 3


# --- segments -----------------------------------------------------------------------------------------------------


def test_segments_computed_by_hand() -> None:
    student = [(0, 2), (2, 5), (5, 6), (6, 9)]
    teacher = [(0, 1), (1, 2), (2, 6), (6, 8), (8, 9)]
    assert align(student, teacher) == [
        Segment(range(0, 1), range(0, 2)),
        Segment(range(1, 3), range(2, 3)),
        Segment(range(3, 4), range(3, 5)),
    ]
    assert alignment_rate(student, teacher) == 3 / 4
    starts = segment_boundaries(np.array(student), np.array(teacher))
    assert [row.tolist() for row in starts] == [[0, 1, 3], [0, 2, 3]]


def test_zero_width_tokens_belong_to_the_segment_that_follows() -> None:
    student, teacher = [(0, 0), (0, 3), (3, 3), (3, 5), (5, 5)], [(0, 3), (3, 5)]
    assert align(student, teacher) == [
        Segment(range(0, 2), range(0, 1)),
        Segment(range(2, 5), range(1, 2)),
    ]
    check_segments(student, teacher)


def test_zero_width_tokens_of_both_sides_are_paired() -> None:
    student, teacher = [(0, 0), (0, 0), (0, 3)], [(0, 0), (0, 3)]
    assert align(student, teacher) == [
        Segment(range(0, 1), range(0, 1)),
        Segment(range(1, 3), range(1, 2)),
    ]


def test_end_tokens_of_both_sides_are_the_last_segment() -> None:
    student, teacher = [(4, 6), (6, 9), (9, 9)], [(4, 9), (9, 9), (9, 9)]
    assert align(student, teacher) == [
        Segment(range(0, 2), range(0, 1)),
        Segment(range(2, 3), range(1, 3)),
    ]


def test_nothing_aligns_with_nothing() -> None:
    assert align([], []) == []
    assert alignment_rate([], []) == 0.0


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Spans, Spans]:
    base, end = draw(st.integers(0, 5)), draw(st.integers(1, 12))
    sides = []
    for _ in range(2):
        cuts = sorted(draw(st.lists(st.integers(0, end), max_size=14)))
        edges = [base + edge for edge in [0, *cuts, end]]
        sides.append(list(itertools.pairwise(edges)))
    return sides[0], sides[1]


@settings(max_examples=300, deadline=None)
@given(sides=tilings())
def test_segments_of_any_two_tilings(sides: tuple[Spans, Spans]) -> None:
    check_segments(*sides)
    rate = alignment_rate(*sides)
    assert rate == len(reference_starts(*sides)) / len(sides[0])


@settings(max_examples=50, deadline=None)
@given(sides=tilings())
def test_identical_sides_give_one_token_per_segment(sides: tuple[Spans, Spans]) -> None:
    spans = sides[0]
    assert align(spans, spans) == [Segment(range(n, n + 1), range(n, n + 1)) for n in range(len(spans))]
    assert alignment_rate(spans, spans) == 1.0


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ([(0, 3)], [(0, 4)], r"different bytes: student spans \[0, 3\), teacher spans \[0, 4\)"),
        ([(1, 3)], [(0, 3)], r"different bytes: student spans \[1, 3\), teacher spans \[0, 3\)"),
        ([], [(0, 3)], r"student spans nothing, teacher spans \[0, 3\)"),
        ([(0, 2), (1, 3)], [(0, 3)], r"student spans 0 and 1 overlap: \(0, 2\), \(1, 3\)"),
        ([(0, 3)], [(0, 1), (2, 3)], r"teacher spans 0 and 1 leave a hole: \(0, 1\), \(2, 3\)"),
        ([(0, 3)], [(2, 3), (0, 2)], r"teacher spans 0 and 1 are out of order"),
        ([(0, 3), (3, 1)], [(0, 3)], r"student span 1 ends before it begins: \(3, 1\)"),
    ],
)
def test_spans_that_do_not_belong_together(student: Spans, teacher: Spans, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        align(student, teacher)


PAIRS = st.tuples(*[st.sampled_from([name for name in zoo.ALL if name not in MAY_REFUSE])] * 2)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=PAIRS, text=TEXTS)
def test_segments_of_any_two_tokenizers(names: tuple[str, str], text: str) -> None:
    student, teacher = (token_spans(tokenizer_named(name), text) for name in names)
    if student and teacher:
        check_segments(student, teacher)


@pytest.mark.slow
def test_twenty_thousand_random_pairs() -> None:
    rng = random.Random(20_000)
    names = [name for name in zoo.ALL if name not in MAY_REFUSE]
    pairs = list(itertools.combinations_with_replacement(names, 2))
    per_pair = -(-20_000 // len(pairs))
    checked = 0
    for student_name, teacher_name in pairs:
        texts = [random_text(rng) for _ in range(per_pair)]
        sides = [batch_token_spans(tokenizer_named(name), texts)[1] for name in (student_name, teacher_name)]
        for text, *spans in zip(texts, *sides, strict=True):
            student, teacher = ([tuple(pair) for pair in row.tolist()] for row in spans)
            checked += 1
            if student and teacher:
                check_tiling(student, len(text.encode()))
                check_tiling(teacher, len(text.encode()))
                check_segments(student, teacher)
                if student_name == teacher_name:
                    assert len(align(student, teacher)) == len(student)
    assert checked >= 20_000


# --- the module ---------------------------------------------------------------------------------------------------


def test_alignment_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "ray", "deepspeed", "mlflow"]
    code = f"import sys, uld_ds.alignment; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
