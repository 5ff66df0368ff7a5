"""Texts that tokenizers treat in ways of their own, and what holds for the spans of any text."""

from __future__ import annotations

import itertools
import random
from typing import Any

import hypothesis.strategies as st
import pytest

from tests.helpers import tokenizers_zoo as zoo

Spans = list[tuple[int, int]]

# Scripts, joiners, marks, controls, code, and what tokenizers use as marks of their own.
PARTS = [
    *("hello world", "The quick brown fox, 123.45!", "def f(x):\n\treturn x  # ok\n", "``quoted''", "x"),
    *(" ", "   ", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\x85"),
    *("中文字符", "日本語の", "한국어", "\u1100\u1161\u11a8", "ｶﾞ", "Ａ", "ไทย", "हिन्दी"),
    *("é", "e\u0301", "a\u0308\u0323", "\u0301", "ﬁ", "½", "ß", "İ", "Σς", "ǅ", "𝔸"),
    *("مرحبا", "שָׁלוֹם", "\u200f", "👩‍👩‍👧", "🇩🇪", "👍🏽", "\u200d", "\u200b", "\ufeff"),
    *("\x00", "\x01", "\x04", "\x1b", "\x7f", "\ufffd", "\U000f0000", "\U0010ffff", "\u0378"),
    *("▁", "▁▁", "Ġ", "##", "</w>", "<0x0A>", "<unk>", "[UNK]", "<s>", "</s>", "<|endoftext|>"),
    *("[MASK]", "<mask>", "<Mask>", "<|im_start|>", "émile", "ÉMILE"),
]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=6)), min_size=1, max_size=8).map("".join)

# What is known to have gone wrong: merged or rewritten with its neighbors, spelled by several tokens, dropped first.
TRAPS = [
    *("ㅎㅏㄴ", "ﾾￂﾤ", "각", "ｶﾞｲﾄﾞ", "Tie\u0302\u0301ng", "e\u0301\u200d", "a\u0323\u200c", "½\u200d", "ﷺ", "ﷻ"),
    *("ΟΔΟΣ", "Σ", "\ufffd", "\u0344", "דּ", "\u0f77", "ℕ℀", "ŉ", "ﬃ", "Å", "豈", "丽", "ﻼ", "☃ ☂", "\x13☃ ☂"),
    *("\ufe0f", "\U000e0100", "#\ufe0f\u20e3", "👩\u200d❤\ufe0f\u200d👩", "\u0345", "\u1160", "\u0e33", "𝅗𝅥"),
    *("conCat", "Cat", "concat", "cat"),
]
# Ranges of code points: the planes, and blocks whose characters some normalizer merges, takes apart, moves or drops.
BLOCKS = [
    *((0x00, 0x1F), (0x20, 0x7E), (0x7F, 0xFF), (0x100, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF)),
    *((0x400, 0x52F), (0x530, 0x5FF), (0x600, 0x6FF), (0x700, 0x8FF), (0x900, 0xDFF), (0xE00, 0xFFF)),
    *((0x1000, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x17FF), (0x1800, 0x1AFF), (0x1B00, 0x1CFF), (0x1D00, 0x1DFF)),
    *((0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x20FF), (0x2100, 0x218F), (0x2190, 0x2BFF)),
    *((0x2E80, 0x2FFF), (0x3000, 0x30FF), (0x3100, 0x33FF), (0x4E00, 0x4EFF), (0xA000, 0xABFF), (0xAC00, 0xAC80)),
    *((0xD7B0, 0xD7FF), (0xE000, 0xE00F), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFB50, 0xFDFF), (0xFE00, 0xFE6F)),
    *((0xFE70, 0xFEFF), (0xFF00, 0xFF5E), (0xFF60, 0xFF9F), (0xFFA0, 0xFFDC), (0xFFE0, 0xFFFF)),
    *((0x10000, 0x10FFF), (0x11000, 0x11FFF), (0x12000, 0x1AFFF), (0x1B000, 0x1CFFF), (0x1D000, 0x1D7FF)),
    *((0x1E000, 0x1EFFF), (0x1F000, 0x1F2FF), (0x1F300, 0x1FAFF), (0x1F3FB, 0x1F3FF), (0x2F800, 0x2FA1F)),
    *((0x30000, 0x3FFFF), (0xE0000, 0xE01EF), (0xF0000, 0x10FFFF)),
]
SCRIPTS = st.lists(
    st.one_of(
        st.sampled_from(TRAPS),
        st.sampled_from(PARTS),
        st.sampled_from(BLOCKS).flatmap(
            lambda block: st.text(
                st.characters(min_codepoint=block[0], max_codepoint=block[1], exclude_categories=["Cs"]), max_size=4
            )
        ),
    ),
    min_size=1,
    max_size=7,
).map("".join)


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
            parts.append(rng.choice(PARTS + TRAPS))
        elif kind < 0.85:
            parts.append("".join(chr(rng.randint(32, 126)) for _ in range(rng.randint(1, 8))))
        else:
            low, high = rng.choice([(0, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)])
            parts.append(chr(rng.randint(low, high)))
    return "".join(parts)


def check_tiling(spans: Spans, num_bytes: int) -> None:
    assert spans[0][0] == 0
    assert spans[-1][1] == num_bytes
    assert all(start <= end for start, end in spans)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def check_decoding(name: str, tokenizer: Any, text: str, spans: Spans) -> None:
    """Compare what the tokens of each stretch of ``text`` decode to with the stretch's own normal form.

    A stretch reaches from one boundary between characters to the next. Whitespace does not count, nor does a stretch
    with unknown tokens, but that it must have some of its own; a text with added tokens is passed over, but for runs
    of spaces. The tokenizer is one of the tokenizers_zoo whose decoder and normalizer keep what its model keeps: none
    written in Python but BERT's, and none that drops bytes.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    unknown = _unknown_id(name, tokenizer)
    runs = {index for index, token in tokenizer.added_tokens_decoder.items() if set(token.content) == {zoo.SPACE_MARK}}
    if set(ids) & (tokenizer.added_tokens_decoder.keys() - {unknown} - runs) or str(tokenizer.unk_token) in text:
        return
    position = {len(text[:at].encode()): at for at in range(len(text) + 1)}
    begins = [start for start, _ in spans]
    heads = [n for n, start in enumerate(begins) if start in position and (n == 0 or start != begins[n - 1])]
    for head, stop in itertools.pairwise([*heads, len(ids)]):
        low, high = spans[head][0], spans[stop - 1][1]
        stretch = text[position[low] : position[high]]
        alone = _solid(_normal(tokenizer, stretch))
        # A few characters, joiners above all, are not the same by themselves as after others.
        before, after = (_solid(_normal(tokenizer, text[: position[end]])) for end in (low, high))
        in_place = after[len(before) :] if after.startswith(before) else alone
        if unknown in ids[head:stop]:
            its_own = tokenizer(stretch, add_special_tokens=False)["input_ids"]
            assert unknown in its_own or not alone or alone != in_place, (text, stretch)
        else:
            tokens = tokenizer.convert_ids_to_tokens(ids[head:stop])
            assert _solid(_decoded(name, tokenizer, tokens)) in (alone, in_place), (text, stretch)


def _unknown_id(name: str, tokenizer: Any) -> int | None:
    if name.startswith(("gpt2", "deepseek", "tekken", "plain_bytes", "unigram_bytes")):
        return None  # the model spells everything; the name in the tokenizer's settings is another token's
    token = tokenizer.unk_token or "<unk>"
    return tokenizer.convert_tokens_to_ids(token)


def _normal(tokenizer: Any, text: str) -> str:
    if not tokenizer.is_fast:
        return "".join(tokenizer.basic_tokenizer.tokenize(text))
    normalizer = tokenizer.backend_tokenizer.normalizer
    return text if normalizer is None else normalizer.normalize_str(text)


def _decoded(name: str, tokenizer: Any, tokens: list[str]) -> str:
    if "wordpiece" in name:
        tokens = [token.removeprefix("##") for token in tokens]
    decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
    return "".join(tokens) if decoder is None else decoder.decode(tokens)


def _solid(text: str) -> str:
    return "".join(text.replace("▁", "").split())
