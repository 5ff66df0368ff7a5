"""The bytes of sampled tokens, for every family of tokenizers: cases computed by hand, and what holds for any ids."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.span_texts import TEXTS, tokenizer_named
from tests.helpers.toy_tokenizers import toy
from uld_ds.tokenization.sampled_tokens import SampledTokens
from uld_ds.tokenization.spans import token_spans

FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Their tokens spell every text to the last byte, and their decoders say so.
LOSSLESS = [
    *("gpt2", "deepseek", "tekken", "mistral", "llama2_style", "gemma_style", "gemma_spaces", "plain_bytes", "byt5")
]
# Their decoders put spaces between words; the words themselves are what the tokens spell.
WORDS = ["wordpiece", "wordpiece_cased", "clip_style", "word_level", "slow_wordpiece_cased"]


@cache
def reader(name: str) -> SampledTokens:
    return SampledTokens(tokenizer_named(name))


HAND_COMPUTED: list[tuple[str, list[str], list[str], list[bytes]]] = [
    # tokenizer, tokens of the prompt, sampled tokens, bytes of each
    ("gpt2", ["ing"], ["in", "g", "Ġking"], [b"in", b"g", b" king"]),
    ("gpt2", ["<|endoftext|>"], ["Ġking"], [b" king"]),
    # A character of three bytes, cut in two.
    ("gpt2", ["a"], ["æĸ", "ĩ"], [b"\xe6\x96", b"\x87"]),
    # A space stands before every stretch of text that the tokenizer reads: the one after a special token is none.
    ("llama2_style", ["<s>", "▁hi"], ["▁x", "▁y"], [b" x", b" y"]),
    ("llama2_style", ["▁hi", "</s>"], ["▁x", "▁y"], [b"x", b" y"]),
    ("llama2_style", ["▁hi", "</s>"], ["▁", "▁x"], [b"", b" x"]),
    ("llama2_style", ["▁hi", "</s>"], ["x", "<0xE6>", "<0x96>"], [b"x", b"\xe6", b"\x96"]),
    ("llama2_style", ["▁hi"], ["▁a", "<s>", "▁b"], [b" a", b"<s>", b"b"]),
    # ... and before a whole text only; after its tokenizer's own special token a text begins.
    ("mistral", ["▁hi", "</s>"], ["▁x"], [b" x"]),
    ("mistral", ["<s>"], ["▁x", "▁y"], [b"x", b" y"]),
    ("gemma_style", ["<bos>"], ["▁x"], [b" x"]),
    # Added tokens that the model makes of spaces: text goes on after them. After one that spells itself it begins.
    ("gemma_spaces", ["<bos>"], ["▁▁", "▁x", "\n\n", "▁▁▁"], [b"  ", b" x", b"\n\n", b"   "]),
    ("llama2_spaces", ["▁hi", "</s>"], ["▁x", "▁▁", "▁y", "\n\n", "▁z"], [b"x", b"  ", b" y", b"\n\n", b"z"]),
    ("llama2_spaces", ["▁▁"], ["▁x"], [b" x"]),
    ("gpt2_prefix_space", ["<|endoftext|>", "Ġa", "<|endoftext|>"], ["Ġa", "Ġa"], [b"a", b" a"]),
    # Words apart, but for what belongs to the word before: so says the decoder.
    ("wordpiece", ["hello"], ["king", "##dom", ".", "so"], [b"king", b"dom", b".", b" so"]),
    ("wordpiece", ["hello"], ["##dom", "king"], [b"dom", b" king"]),
    ("slow_wordpiece", ["hello"], ["king", "##dom", ",", "so"], [b"king", b"dom", b",", b" so"]),
    ("slow_wordpiece_added", ["hello"], ["king", "##dom", "so"], [b"king", b"dom", b" so"]),
    ("clip_style", ["so</w>"], ["hel", "lo</w>", "so</w>"], [b"hel", b"lo", b" so"]),
    ("word_level", ["so"], ["so", "-", "a"], [b"so", b" -", b" a"]),
    ("characters", ["a"], ["a", " ", "b"], [b"a", b" ", b"b"]),
    ("byt5", ["a"], ["Ã", "©"], [b"\xc3", b"\xa9"]),
    ("canine", ["a"], ["é", "中"], ["é".encode(), "中".encode()]),
    ("unigram", ["</s>"], ["▁a", "▁a"], [b"a", b" a"]),
]


@pytest.mark.parametrize(("name", "prompt", "sampled", "expected"), HAND_COMPUTED)
def test_hand_computed(name: str, prompt: list[str], sampled: list[str], expected: list[bytes]) -> None:
    tokenizer = tokenizer_named(name)
    after, ids = (tokenizer.convert_tokens_to_ids(tokens) for tokens in (prompt, sampled))
    assert tokenizer.convert_ids_to_tokens(ids) == sampled, "the case names tokens that are there"
    assert reader(name).pieces(ids, after) == expected


def test_what_spells_nothing() -> None:
    unknown = reader("wordpiece")
    number = tokenizer_named("wordpiece").convert_tokens_to_ids("[UNK]")
    assert not unknown.spells(number)
    with pytest.raises(ValueError, match=f"token {number} spells nothing"):
        unknown.pieces([number])
    # Models have more rows than their tokenizers have tokens.
    for name in ("gpt2", "byt5", "canine", "slow_wordpiece"):
        assert not reader(name).spells(5_000_000)
    # Half of a surrogate pair is a token of CANINE's, and no text.
    assert not reader("canine").spells(0xD800)
    assert reader("canine").spells(0xE9)
    # Byte 0xff is a byte like any other to a model that has it.
    assert reader("gpt2").spells(tokenizer_named("gpt2").convert_tokens_to_ids("ÿ"))


@FEW
@pytest.mark.parametrize("name", LOSSLESS)
@given(text=TEXTS)
def test_what_the_tokenizer_itself_writes_spells_the_text(name: str, text: str) -> None:
    tokenizer = tokenizer_named(name)
    # A control token that is typed takes the white space beside it with it (ByT5's `\n</s>`): no text as the product
    # reads it, where what is typed stays text.
    if any(token in text for token in tokenizer.all_special_tokens):
        return
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or not all(map(reader(name).spells, ids)):
        return
    data = text.replace("▁", " ").encode() if reader(name)._table.rule.space_marks else text.encode()
    pieces = reader(name).pieces(ids)
    if name == "mistral" and data[:1] == b" ":
        # Metaspace puts no space before a text that begins with one: its tokens are those of the text without it.
        assert b" " + b"".join(pieces) == data
        return
    assert b"".join(pieces) == data
    if data == text.encode():
        assert pieces == [data[start:end] for start, end in token_spans(tokenizer, text)]


@FEW
@pytest.mark.parametrize("name", LOSSLESS)
@given(data=st.data())
def test_any_ids_spell_what_they_decode_to(name: str, data: st.DataObject) -> None:
    tokenizer, prompt = tokenizer_named(name), _ids(tokenizer_named(name), "A question:")
    ids = data.draw(_plain_ids(tokenizer))
    pieces = reader(name).pieces(ids, prompt)
    assert len(pieces) == len(ids)
    spelled = b"".join(pieces).decode(errors="replace")
    if "\ufffd" in spelled or "\ufffd" in (whole := tokenizer.decode([*prompt, *ids], skip_special_tokens=False)):
        return  # decoders lay invalid bytes out in ways of their own
    assert whole == tokenizer.decode(prompt, skip_special_tokens=False) + spelled


@FEW
@pytest.mark.parametrize("name", WORDS)
@given(data=st.data())
def test_any_words_spell_what_they_decode_to(name: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_named(name)
    ids = [index for index in data.draw(_plain_ids(tokenizer)) if reader(name).spells(index)]
    if not ids:
        return
    pieces = reader(name).pieces(ids)
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    if name.startswith("slow"):
        assert b"".join(pieces).decode().split() == _apart(tokenizer, ids).split()
    else:
        # A first token that continues a word has its mark in what is decoded.
        assert b"".join(pieces).decode() == whole.removeprefix("##")


@FEW
@pytest.mark.parametrize("name", zoo.names(zoo.ALL))
@given(data=st.data())
def test_pieces_of_any_ids_do_not_depend_on_what_follows(name: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_named(name)
    ids = [index for index in data.draw(_plain_ids(tokenizer)) if reader(name).spells(index)]
    pieces = reader(name).pieces(ids, _ids(tokenizer, "so"))
    for count in range(len(ids)):
        assert reader(name).pieces(ids[:count], _ids(tokenizer, "so")) == pieces[:count]


def test_a_special_token_of_several_sorts_spells_itself() -> None:
    tokenizer = toy("in", bos=True)
    ids = tokenizer.convert_tokens_to_ids(["in", "<user>", "in"])
    assert SampledTokens(tokenizer).pieces(ids) == [b"in", b"<user>", b"in"]


def test_a_control_token_with_the_mark_in_its_name_spells_itself_whatever_the_vocabulary_has() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_description("llama2_style")))
    tokenizer.add_special_tokens({"eos_token": "▁begin"})
    ids = tokenizer.convert_tokens_to_ids(["▁x", "▁begin", "▁x"])
    assert ids[1] < 32_000
    assert SampledTokens(tokenizer).pieces(ids, ids[:1]) == [b" x", "▁begin".encode(), b"x"]


def _description(name: str) -> str:
    return str(tokenizer_named(name).backend_tokenizer.to_str())


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _plain_ids(tokenizer: Any) -> st.SearchStrategy[list[int]]:
    """Ids of a vocabulary, none of them an added token but runs of spaces; of CANINE's, characters people use."""
    most = min(len(tokenizer), 0x3000) if len(tokenizer) > 1_000_000 else len(tokenizer)
    added = tokenizer.added_tokens_decoder
    one = st.integers(0, most - 1).filter(lambda index: index not in added)
    if runs := [index for index, token in added.items() if set(token.content) == {zoo.SPACE_MARK}]:
        one = one | st.sampled_from(runs)
    return st.lists(one, min_size=1, max_size=12)


def _apart(tokenizer: Any, ids: list[int]) -> str:
    """What a tokenizer written in Python says of tokens two by two: it tidies up a whole text as no token could."""
    said = [tokenizer.decode(ids[:1])]
    for first, second in pairwise(ids):
        alone, both = tokenizer.decode([first]), tokenizer.decode([first, second])
        said.append(both[len(alone) :] if both.startswith(alone) else " " + tokenizer.decode([second]))
    return "".join(said).replace("##", "")
