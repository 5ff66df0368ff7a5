"""The bytes that a vocabulary's entries spell, and what is known of characters by themselves."""

from __future__ import annotations

from unicodedata import normalize

from uld_ds.tokenization.token_bytes import is_extender


def test_what_composition_may_merge_with_the_character_before_is_an_extender() -> None:
    marks = ["\u0301", "\u3099", "\u093e", "\ufe0f"]
    jamo = ["\u1161", "\u11a8", "\u314f", "\u3133", "\uffc2", "\uffa3", "\ud7b0"]
    assert [character for character in [*marks, *jamo, "\uff9e"] if not is_extender(character)] == []
    assert [character for character in "aé中\u1100\u3131\uffa1 \u200d" if is_extender(character)] == []


def test_every_character_that_nfkc_merges_with_a_base_is_an_extender() -> None:
    bases = "aeouYяιがカ\u0bc6\u1100\uac00\u09c7"
    merged = set()
    for code in [*range(0x300, 0xD800), *range(0xF900, 0x10000)]:
        character = chr(code)
        apart = normalize("NFKC", character)
        if any(normalize("NFKC", base + character) != normalize("NFKC", base) + apart for base in bases):
            merged.add(character)
    assert len(merged) > 100
    assert [hex(ord(character)) for character in merged if not is_extender(character)] == []
