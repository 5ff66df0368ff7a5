"""Byte spans of every tokenizer family: cases computed by hand, and what holds for any text."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.span_texts import SCRIPTS, TEXTS, Spans, check_decoding, check_tiling, tokenizer_named
from uld_ds.tokenization.sections import Tokens
from uld_ds.tokenization.span_matching import Effort, normal_starts
from uld_ds.tokenization.spans import AlignmentError, batch_token_spans, span_finder, spans_of_ids, token_spans

# Without a decoder of their own (ByT5, CANINE), or with bytes that the vocabulary lacks and nothing shows (SmolLM2).
DECODE_OTHERWISE = {"byt5", "canine", "smollm2"}
FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- cases computed by hand ---------------------------------------------------------------------------------------

HAND_COMPUTED = [
    # A character of three bytes cut in two: one token, one byte each.
    ("gpt2", "中文", [("ä¸Ń", 0, 3), ("æĸ", 3, 5), ("ĩ", 5, 6)]),
    # The space before the text is not in it: a token of no width, or one byte less.
    ("mistral", "中 a  b", [("▁", 0, 0), ("中", 0, 3), ("▁a", 3, 5), ("▁", 5, 6), ("▁b", 6, 8)]),
    ("gpt2_prefix_space", "hello world", [("Ġhello", 0, 5), ("Ġworld", 5, 11)]),
    ("gemma_style", "a  b", [("a", 0, 1), ("▁", 1, 2), ("▁b", 2, 4)]),
    # Tokens that were added and are the model's as well: two spaces, or as they stand in the text.
    ("gemma_spaces", "a   b", [("a", 0, 1), ("▁▁", 1, 3), ("▁b", 3, 5)]),
    ("gemma_spaces", "a▁▁b", [("a", 0, 1), ("▁▁", 1, 7), ("b", 7, 8)]),
    ("gemma_spaces", "a   ▁▁▁ b", [("a", 0, 1), ("▁▁▁", 1, 4), ("▁▁▁", 4, 13), ("▁b", 13, 15)]),
    ("gemma_spaces", "▁ ▁ ▁▁", [("▁▁▁▁", 0, 8), ("▁▁", 8, 14)]),
    ("gemma_spaces", "  \n\n  é▁▁", [("▁▁", 0, 2), ("\n\n", 2, 4), ("▁", 4, 5), ("▁é", 5, 8), ("▁▁", 8, 14)]),
    (
        "llama2_spaces",
        "a    b▁▁c",
        [("▁a", 0, 1), ("▁▁▁", 1, 4), ("▁b", 4, 6), ("▁▁", 6, 12), ("▁c", 12, 13)],
    ),
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
    # A combining mark after a special token is normalized apart from it.
    (
        "gpt2_nfc",
        "e\u0301<|endoftext|>\u0338x",
        [("Ã©", 0, 3), ("<|endoftext|>", 3, 16), ("Ì", 16, 17), ("¸", 17, 18), ("x", 18, 19)],
    ),
    # NFC makes one character of "e" and its accent: three bytes, one token.
    ("gpt2_nfc", "cafe\u0301 x", [("c", 0, 1), ("af", 1, 3), ("Ã©", 3, 6), ("Ġx", 6, 8)]),
    # ... and one of three jamo, in three tokens: only the last one completes it.
    ("gpt2_nfc", "\u1100\u1161\u11a8x", [("ê", 0, 0), ("°", 0, 0), ("ģ", 0, 9), ("x", 9, 10)]),
    # A token that reaches into a character that it does not complete ends nowhere, not even where that one begins.
    ("gpt2_nfkc", "ℕ℀", [("Na", 0, 0), ("/", 0, 0), ("c", 0, 6)]),
    ("clip_style", "dİ a", [("di", 0, 0), ("<unk>", 0, 3), ("a</w>", 3, 5)]),
    # Jamo for compatibility, of full and of half width, make syllables under NFKC; the compiled map leaves them apart.
    ("gpt2_nfkc", "ㅎㅏㄴ", [("íķ", 0, 0), ("ĺ", 0, 6), ("á", 6, 6), ("Ħ", 6, 6), ("Ĥ", 6, 9)]),
    ("gpt2_nfkc", "\uffbe\uffc2 x", [("íķ", 0, 0), ("ĺ", 0, 6), ("Ġx", 6, 8)]),
    ("mistral_nfkc", "ㅎㅏ a", [("▁", 0, 0), ("하", 0, 6), ("▁a", 6, 8)]),
    # The compiled map goes by graphemes of at most five bytes: a joiner more, and the accent stays apart.
    ("mistral_compiled", "e\u0301 x", [("▁é", 0, 3), ("▁x", 3, 5)]),
    ("mistral_compiled", "e\u0301\u200d x", [("▁e", 0, 1), ("\u0301", 1, 3), ("▁", 3, 6), ("▁x", 6, 8)]),
    ("mistral_compiled", "½\u200dx", [("▁", 0, 0), ("1", 0, 0), ("⁄", 0, 0), ("2", 0, 2), ("x", 2, 6)]),
    # Vietnamese with marks apart, in part and in all: the map drops the second mark of a grapheme that it looks up.
    (
        "unigram_xlmr",
        "Tiê\u0301ng Viê\u0323t",
        [
            ("▁T", 0, 1),
            ("iê", 1, 4),
            ("<unk>", 4, 6),
            ("ng", 6, 8),
            ("▁V", 8, 10),
            ("iê", 10, 13),
            ("<unk>", 13, 15),
            ("t", 15, 16),
        ],
    ),
    ("unigram_t5_compiled", "Tie\u0302\u0301ng", [("▁T", 0, 1), ("iê", 1, 7), ("ng", 7, 9)]),
    # Kana of half width and their voicing marks.
    (
        "unigram_xlmr",
        "ｶﾞｲﾄﾞ",
        [("▁", 0, 0), ("カ", 0, 3), ("\u3099", 3, 6), ("イ", 6, 9), ("ト", 9, 12), ("\u3099", 12, 15)],
    ),
    ("unigram_albert_compiled", "Tiê\u0301ng ｶﾞ", [("▁ti", 0, 2), ("eng", 2, 8), ("▁", 8, 9), ("カ", 9, 15)]),
    # Nothing tells unknown tokens apart that stand for one character, or that the tokenizer has no offsets for.
    ("clip_style", "\ufb4d a", [("<unk>", 0, 0), ("<unk>", 0, 3), ("a</w>", 3, 5)]),
    (
        "slow_wordpiece",
        "a ☃ ☂ b ☃ c",
        [("a", 0, 1), ("[UNK]", 1, 1), ("[UNK]", 1, 9), ("b", 9, 11), ("[UNK]", 11, 15), ("c", 15, 17)],
    ),
    # Its offsets are wrong where the compiled map drops the first character.
    ("unigram_xlmr", "\x13☃ ☂ a", [("▁", 0, 1), ("<unk>", 1, 1), ("▁", 1, 1), ("<unk>", 1, 8), ("▁a", 8, 10)]),
    # A sigma at the end of a word, and what BERT drops.
    ("slow_wordpiece", "ΟΔΌΣ a", [("ο", 0, 2), ("##δ", 2, 4), ("##ος", 4, 8), ("a", 8, 10)]),
    ("slow_wordpiece", "a\ufffdb c", [("ab", 0, 5), ("c", 5, 7)]),
    # Added tokens that must stand as words of their own, after longer words that hold them.
    ("wordpiece_added", "conCat Cat", [("con", 0, 3), ("##cat", 3, 6), ("Cat", 6, 10)]),
    ("wordpiece_added", "CatⒶ Cat", [("[UNK]", 0, 6), ("Cat", 6, 10)]),
    ("wordpiece_added", "Cat½ x", [("Cat", 0, 3), ("½", 3, 5), ("x", 5, 7)]),
    ("wordpiece_added", "conCat ☃ Cat", [("con", 0, 3), ("##cat", 3, 6), ("[UNK]", 6, 10), ("Cat", 10, 14)]),
    ("slow_wordpiece_added", "concat, cat", [("con", 0, 3), ("##cat", 3, 6), (",", 6, 7), ("cat", 7, 11)]),
    # transformers 5.23 takes an added token next to one that must stand as a word for ordinary text.
    (
        "slow_wordpiece_added",
        "cat[MASK][MASK]",
        [("cat", 0, 3), ("[", 3, 4), ("mask", 4, 8), ("]", 8, 9), ("[MASK]", 9, 15)],
    ),
    ("slow_wordpiece_added", "Cat cat <Mask>", [("cat", 0, 3), ("cat", 3, 7), ("<Mask>", 7, 14)]),
    ("byt5", "aé", [("a", 0, 1), ("Ã", 1, 2), ("©", 2, 3)]),
    ("byt5", "<unk><unk>a", [("<unk>", 0, 5), ("<unk>", 5, 10), ("a", 10, 11)]),
    ("canine", "aé中", [("a", 0, 1), ("é", 1, 3), ("中", 3, 6)]),
    # CANINE has names for its markers, which are characters for private use.
    ("canine", "a\ue002", [("a", 0, 1), ("[BOS]", 1, 4)]),
    # What could be a mark for a space is none in a vocabulary without it.
    ("slow_wordpiece", "é▁<", [("[UNK]", 0, 5), ("<", 5, 6)]),
    # Accents are no part of what a tokenizer that keeps them drops before a word.
    ("slow_wordpiece_cased", "\u0378#\u1de3\u054f", [("#", 0, 3), ("[UNK]", 3, 8)]),
    # What is dropped before unknown words that nothing tells apart does not come between them.
    ("slow_wordpiece", "\ufe28☃ ☂ a", [("[UNK]", 0, 0), ("[UNK]", 0, 10), ("a", 10, 12)]),
    # Whitespace that is an unknown token belongs to that token.
    ("unigram_albert", "\t文ŉ", [("▁", 0, 0), ("<unk>", 0, 1), ("文", 1, 4), ("<unk>", 4, 4), ("n", 4, 6)]),
    # An added token that must stand as a word does so between spaces, in a tokenizer written in Python.
    (
        "slow_wordpiece_added",
        "hotDog Dog hotDog",
        [("hot", 0, 3), ("##dog", 3, 6), ("Dog", 6, 10), ("hot", 10, 14), ("##dog", 14, 17)],
    ),
    (
        "slow_wordpiece_added",
        ",Dog Dog Dog,",
        [(",", 0, 1), ("dog", 1, 4), ("Dog", 4, 8), ("dog", 8, 12), (",", 12, 13)],
    ),
    (
        "unigram_xlmr",
        "\x13\x14☃ ☂ ☀ x",
        [
            ("▁", 0, 2),
            ("<unk>", 2, 2),
            ("▁", 2, 2),
            ("<unk>", 2, 2),
            ("▁", 2, 2),
            ("<unk>", 2, 13),
            ("▁", 13, 14),
            ("x", 14, 15),
        ],
    ),
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


# --- for any text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names(zoo.ALL))
@FEW
@given(text=TEXTS)
def test_spans_tile_the_text(name: str, text: str) -> None:
    tokenizer = tokenizer_named(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    spans = token_spans(tokenizer, text)
    assert len(spans) == len(ids)
    if spans:
        check_tiling(spans, len(text.encode()))


def check_spans(name: str, text: str) -> None:
    tokenizer = tokenizer_named(name)
    spans: Spans = token_spans(tokenizer, text)
    assert len(spans) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    if spans:
        check_tiling(spans, len(text.encode()))
        if name not in DECODE_OTHERWISE:
            check_decoding(name, tokenizer, text, spans)


@pytest.mark.parametrize("name", zoo.names(zoo.ALL))
@FEW
@given(text=SCRIPTS)
def test_every_stretch_of_any_script_decodes_to_its_normal_form(name: str, text: str) -> None:
    check_spans(name, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names(zoo.ALL))
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=SCRIPTS)
def test_three_thousand_texts_of_any_script(name: str, text: str) -> None:
    check_spans(name, text)


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


@pytest.mark.parametrize(
    "name", ["gpt2", "mistral", "gemma_style", "gemma_spaces", "wordpiece", "unigram_t5", "word_level"]
)
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


RUNS = [" ", "  ", "   ", "▁", "▁▁", "a", "é", "\n\n", " return x"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.lists(st.sampled_from(RUNS), min_size=1, max_size=8).map("".join))
def test_runs_of_spaces_are_where_the_offsets_say(text: str) -> None:
    """The offsets are an oracle here: every token stands for whole characters, and nothing is dropped."""
    tokenizer = tokenizer_named("gemma_spaces")
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    by_offsets = [tuple(len(text[:edge].encode()) for edge in pair) for pair in offsets]
    assert token_spans(tokenizer, text) == by_offsets
    # At first sight, and without offsets (tokens of another's making), also where the mark stands in the text.
    reading, ids = span_finder(tokenizer).reading([]), np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    for given_offsets in (offsets.__getitem__, None):
        (starts,) = normal_starts(reading, [Tokens(text, ids.astype(np.int64), given_offsets)], Effort())
        assert isinstance(starts, np.ndarray), starts
        assert starts.tolist() == [start for start, _ in by_offsets]


def test_an_added_token_that_continues_words_as_well() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_copy("wordpiece"), unk_token="[UNK]")
    tokenizer.add_tokens([AddedToken("##ing", normalized=False)])
    ids = tokenizer.convert_tokens_to_ids(["playing", "##ing", "una", "##ffa", "##ing"])
    text = "playing ##ing unaffaing"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert token_spans(tokenizer, text) == [(0, 7), (7, 13), (13, 17), (17, 20), (20, 23)]
    # Without offsets one reading must do for all of a text, and where none does it is refused.
    apart = [[ids[1]], ids[2:]]
    assert [spans_of_ids(tokenizer, t, row).tolist() for t, row in zip(["##ing", "unaffaing"], apart, strict=True)] == [
        [[0, 5]],
        [[0, 3], [3, 6], [6, 9]],
    ]
    other = tokenizer.convert_tokens_to_ids(["play", "##ing", "##ing", "una", "##ffa", "##ing"])
    with pytest.raises(AlignmentError, match="do not spell the text"):
        spans_of_ids(tokenizer, text, other)
    only_literal = tokenizer.convert_tokens_to_ids(["p", "##lay", "##ing", "so"])
    assert spans_of_ids(tokenizer, "play ##ing so", only_literal).tolist() == [[0, 1], [1, 4], [4, 10], [10, 13]]


def test_an_added_token_that_is_part_of_a_character_as_well() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_copy("gpt2"))
    tokenizer.add_tokens([AddedToken("é", normalized=False)])  # of the vocabulary it is the byte 0xE9
    text = "né駅"
    spans = [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert list(zip(tokens, token_spans(tokenizer, text), strict=True)) == list(
        zip(["n", "é", "é", "§", "ħ"], spans, strict=True)
    )


def _copy(name: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_named(name).backend_tokenizer.to_str())


@pytest.mark.parametrize(
    "name", ["smollm2", "mistral", "llama2_style", "gemma_spaces", "unigram_albert", "gpt2_added", "byt5"]
)
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


def test_added_tokens_that_are_words_are_found_without_offsets() -> None:
    tokenizer = tokenizer_named("wordpiece_added")
    ids = tokenizer.convert_tokens_to_ids(["ca", "##t", "##½", "Cat", "½", "con", "##cat", "Cat"])
    spans = spans_of_ids(tokenizer, "cat½ Cat½ conCat Cat", ids)  # the tokenizer itself has "cat" in one
    assert spans.tolist() == [[0, 2], [2, 3], [3, 5], [5, 9], [9, 11], [11, 15], [15, 18], [18, 22]]


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
