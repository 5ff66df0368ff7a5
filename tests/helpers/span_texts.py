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
    *("▁", "Ġ", "##", "</w>", "<0x0A>", "<unk>", "[UNK]", "<s>", "</s>", "<|endoftext|>"),
    *("[MASK]", "<mask>", "<Mask>", "<|im_start|>", "émile", "ÉMILE"),
]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=6)), min_size=1, max_size=8).map("".join)

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


def check_tiling(spans: Spans, num_bytes: int) -> None:
    assert spans[0][0] == 0
    assert spans[-1][1] == num_bytes
    assert all(start <= end for start, end in spans)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
